"""The CUDA driver's calls, recorded by a stand-in for libcuda in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tileproof.runtime.backends import Code, Cuda
from tileproof.runtime.bundle import Bundle

# CPU memory behind a CUDA driver: the stand-in never touches it.
PRELUDE = """
    import sys, torch, tvm_ffi
    from tileproof.runtime import backends, load
    from tileproof.runtime.backends import CPU, Code, Cuda
    from tileproof.runtime.bundle import Bundle
    code = Code(Bundle(sys.argv[1]))
    M = 33
    x = torch.zeros(M, 4, 64, dtype=torch.bfloat16)
    y, post, comb = x[:, 0].contiguous(), torch.zeros(M, 4), torch.zeros(M, 4, 4)
    out = x.clone()
"""
BIND = "run = Cuda().bind(code, 'mhc_post__bf16_N4_D64', (CPU, 0))"


@pytest.fixture(scope="module")
def libcuda(tmp_path_factory):
    folder = tmp_path_factory.mktemp("libcuda")
    source = Path(__file__).with_name("mock_libcuda.c")
    command = ["gcc", "-shared", "-fPIC", "-o", str(folder / "libcuda.so.1"), str(source)]
    subprocess.run(command, check=True)
    return folder


@pytest.fixture
def run(libcuda, bundle, tmp_path):
    """``run(script, capability=90, fail="")`` → (stdout, recorded calls, stderr)."""

    def start(script, capability=90, fail=""):
        log = tmp_path / "calls"
        log.unlink(missing_ok=True)
        log.touch()
        environment = os.environ | {
            "LD_LIBRARY_PATH": str(libcuda),
            "MOCK_CUDA_LOG": str(log),
            "MOCK_CUDA_CAPABILITY": str(capability),
            "MOCK_CUDA_FAIL": fail,
        }
        text = textwrap.dedent(PRELUDE) + textwrap.dedent(script)
        done = subprocess.run(
            [sys.executable, "-c", text, str(bundle)],
            capture_output=True,
            text=True,
            env=environment,
        )
        return done.stdout, log.read_text().splitlines(), done.stderr

    return start


def test_a_launch(run):
    script = f"""
        {BIND}
        with tvm_ffi.use_raw_stream(tvm_ffi.device("cpu"), 0x5ea):
            run(x, y, post, comb, out)
        print(hex(out.data_ptr()))
        del run
    """
    out, calls, errors = run(script)
    assert calls == [
        "cuInit 0",
        "cuDeviceGet 0",
        "cuDeviceGet 0",
        "cuDevicePrimaryCtxRetain 0",
        "cuCtxPushCurrent ",
        "cuModuleLoadData \x7fELF",
        "cuCtxPopCurrent ",
        "cuCtxPushCurrent ",
        "cuModuleGetFunction 1 mhc_post__bf16_N4_D64_kernel",
        "cuCtxPopCurrent ",
        "cuCtxPushCurrent ",
        "cuLaunchKernel 1 grid 3 1 1 block 128 1 1 smem 0 stream 0x5ea M 33 out " + out.strip(),
        "cuCtxPopCurrent ",
        "cuCtxPushCurrent ",
        "cuModuleUnload 1",
        "cuCtxPopCurrent ",
    ], errors


def test_zero_tokens_launch_nothing(run):
    script = f"""
        {BIND}
        run(x[:0], y[:0], post[:0], comb[:0], out[:0])
        print("done")
    """
    out, calls, errors = run(script)
    assert out == "done\n", errors
    assert not any(call.startswith("cuLaunchKernel") for call in calls)


@pytest.mark.parametrize(("capability", "arch"), [(80, "sm_80"), (86, "sm_80"), (90, "sm_90a")])
def test_the_devices_arch_is_loaded(run, capability, arch):
    script = """
        from unittest.mock import patch
        with patch.object(Bundle, "read", autospec=True, side_effect=Bundle.read) as read:
            Cuda().bind(code, "mhc_post__bf16_N4_D64", (CPU, 0))
        print([c.args[1] for c in read.call_args_list if c.args[1].endswith(".cubin")])
    """
    out, _, errors = run(script, capability)
    assert out == f"['cubin/mhc_post__bf16_N4_D64.{arch}.cubin']\n", errors


def test_a_device_without_code_is_refused_at_load(run):
    _, _, errors = run("load(sys.argv[1])", capability=120)
    assert "got code for sm_80, sm_90a, expected code for a device of compute" in errors
    assert "tileproof build --arch sm_120a" in errors


def test_auto_is_cuda_where_there_is_a_device(run):
    out, _, errors = run("print(load(sys.argv[1]).backend)")
    assert out == "cuda\n", errors


def test_cpu_tensors_are_refused(run):
    _, _, errors = run("load(sys.argv[1]).mhc_post(x, y, post, comb)")
    assert "got a tensor on cpu, expected cuda; load the bundle with backend='virtual'" in errors


@pytest.mark.parametrize(
    ("fail", "words"),
    [
        (
            "cuLaunchKernel:700",
            "mhc/post: not launched: a kernel that ran earlier on this device failed with "
            "CUDA_ERROR_ILLEGAL_ADDRESS (an illegal memory access was encountered)",
        ),
        ("cuLaunchKernel:2", "mhc/post: cuLaunchKernel: CUDA_ERROR_OUT_OF_MEMORY (2: out of memor"),
        ("cuModuleLoadData:2", "mhc/post: cuModuleLoadData: CUDA_ERROR_OUT_OF_MEMORY (2: out of"),
        ("cuModuleGetFunction:2", "mhc/post: cuModuleGetFunction: CUDA_ERROR_OUT_OF_MEMORY"),
        ("cuInit:2", "cuInit: CUDA_ERROR_OUT_OF_MEMORY"),
    ],
)
def test_driver_errors_name_the_op(run, fail, words):
    _, _, errors = run(f"{BIND}\nrun(x, y, post, comb, out)", fail=fail)
    assert f"RuntimeError: {words}" in errors


def test_more_than_48_kib_of_shared_memory_is_opted_in_to(run):
    script = """
        import ctypes
        driver = code.launchers["cuda_driver"]()
        # tp_driver: abi, name, module_load, module_unload, function_get, launch, error
        entry = ctypes.cast(driver, ctypes.POINTER(ctypes.c_void_p))
        load_type = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t,
                                     ctypes.POINTER(ctypes.c_void_p))
        get_type = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint32,
                                    ctypes.POINTER(ctypes.c_void_p))
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        load_type(entry[2])(0, b"image", 5, ctypes.byref(module))
        get_type(entry[4])(module, b"small", 48 * 1024, ctypes.byref(function))
        get_type(entry[4])(module, b"large", 48 * 1024 + 1, ctypes.byref(function))
    """
    _, calls, errors = run(script)
    assert [c for c in calls if "Attribute" in c] == ["cuFuncSetAttribute 1 8 49153"], errors


def test_without_a_driver_the_words_say_so(bundle):
    with pytest.raises(
        RuntimeError, match=r"no CUDA driver on this machine: libcuda.so.1: cannot op"
    ):
        Cuda().bind(Code(Bundle(bundle)), "mhc_post__bf16_N4_D64", (1, 0))
