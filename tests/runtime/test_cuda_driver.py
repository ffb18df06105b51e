"""The CUDA driver's calls, recorded by a stand-in for libcuda in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tileproof.codegen.build import build
from tileproof.codegen.target import Target
from tileproof.codegen.user import specialize
from tileproof.dsl import get
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
SPECIAL = """
    import tilelang.language as T

    @T.prim_func
    def pairs(a: T.Tensor((256,), "float32"), c: T.Tensor((256,), "float32")):
        with T.Kernel(4, threads=64, cluster_dims=(2, 1, 1)) as bx:
            c[bx * 64 + T.get_thread_binding()] = a[bx * 64 + T.get_thread_binding()]

    @T.prim_func
    def whole(a: T.Tensor((256,), "float32"), c: T.Tensor((256,), "float32")):
        with T.Kernel(8, threads=32) as bx:
            c[bx * 32 + T.get_thread_binding()] = a[bx * 32 + T.get_thread_binding()]
            T.sync_grid()

    def product(N=128, K=64):
        M = T.dynamic("m")

        @T.prim_func
        def kernel(
            A: T.Tensor((M, K), "float16"),
            B: T.Tensor((K, N), "float16"),
            C: T.Tensor((M, N), "float32"),
        ):
            with T.Kernel(N // 64, T.ceildiv(M, 64), threads=128) as (x, y):
                a, b = T.alloc_shared((64, 32), "float16"), T.alloc_shared((32, 64), "float16")
                c = T.alloc_fragment((64, 64), "float32")
                T.clear(c)
                for k in T.Pipelined(K // 32, num_stages=2):
                    T.copy(A[y * 64, k * 32], a)
                    T.copy(B[k * 32, x * 64], b)
                    T.gemm(a, b, c)
                T.copy(c, C[y * 64, x * 64])

        return kernel
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


@pytest.fixture(scope="module")
def special(tmp_path_factory):
    """A bundle of launches with attributes and tensor maps."""
    folder = tmp_path_factory.mktemp("special")
    (folder / "mine.py").write_text(textwrap.dedent(SPECIAL))
    names = ("pairs", "whole", "product")
    specs = [specialize(Target(f"{folder}/mine.py:{n}"), None, "sm_90a") for n in names]
    return build(specs, ["sm_90a"], folder / "bundle", jobs=1)


def test_clusters_and_cooperative_grids_are_attributes(run, special):
    script = f"""
        code = Code(Bundle({str(special)!r}))
        a, b = torch.zeros(256), torch.zeros(256)
        Cuda().bind(code, "pairs", (CPU, 0))(a, b)
        Cuda().bind(code, "whole", (CPU, 0))(a, b)
    """
    _, calls, errors = run(script)
    assert [c for c in calls if c.startswith("cuLaunch")] == [
        "cuLaunchKernelEx 1 grid 4 1 1 block 64 smem 0 stream (nil) cluster 2 1 1",
        "cuLaunchKernelEx 1 grid 8 1 1 block 32 smem 0 stream (nil) attribute 2 = 1",
    ], errors


def test_tensor_maps_are_encoded_once_per_address_and_shape(run, special):
    script = f"""
        code = Code(Bundle({str(special)!r}))
        run = Cuda().bind(code, "product", (CPU, 0))
        A, B = torch.zeros(128, 64).half(), torch.zeros(64, 128).half()
        C = torch.zeros(128, 128)
        for rows in (128, 128, 64, 128, 64):
            run(A[:rows], B, C[:rows])
        print(hex(A.data_ptr()), hex(B.data_ptr()))
    """
    out, calls, errors = run(script)
    (first, second), how = out.split(), "steps 1 1 how 0"
    maps = [c.removeprefix("cuTensorMapEncodeTiled ") for c in calls if "TensorMap" in c]
    # B's map has no size of its own that changes; it is kept by all sizes of the call.
    box = maps[0][maps[0].index("stride") :]
    assert how in box
    assert [m[: m.index(" stride")] for m in maps] == [
        f"type 6 rank 2 address {first} extents 64 128",
        f"type 6 rank 2 address {second} extents 128 64",
        f"type 6 rank 2 address {first} extents 64 64",
        f"type 6 rank 2 address {second} extents 128 64",
    ], errors
    assert all(m.endswith("aligned 1") for m in maps)
    assert sum(c.startswith("cuLaunchKernel ") for c in calls) == 5


def test_loading_is_allowed_while_another_thread_captures(run):
    _, calls, errors = run(BIND)
    assert "cuModuleLoadData \x7fELF" in calls, errors


def test_a_device_newer_than_all_code_is_given_ptx(run, tmp_path):
    out = build([get("mhc/post").specialize(N=4, D=64)], ["sm_80"], tmp_path / "ptx", ptx=True)
    script = f"""
        code = Code(Bundle({str(out)!r}))
        {BIND}
        run(x, y, post, comb, out)
    """
    _, calls, errors = run(script, capability=103)
    loaded = [call for call in calls if call.startswith("cuModuleLoadData")]
    assert loaded == ["cuModuleLoadData //"], errors  # nvcc's PTX begins with a comment
    _, calls, errors = run(script, capability=86)
    assert "cuModuleLoadData \x7fELF" in calls, errors


def test_a_launch_calls_nothing_else_so_a_graph_can_capture_it(run):
    script = f"""
        {BIND}
        run(x, y, post, comb, out)
        import os
        open(os.environ["MOCK_CUDA_LOG"], "a").write("captured\\n")
        with tvm_ffi.use_raw_stream(tvm_ffi.device("cpu"), 0x5ea):
            run(x, y, post, comb, out)
            run(x, y, post, comb, out)
        open(os.environ["MOCK_CUDA_LOG"], "a").write("done\\n")
    """
    _, calls, errors = run(script)
    captured = calls[calls.index("captured") + 1 : calls.index("done")]
    names = [c.split()[0] for c in captured]
    assert names == ["cuCtxPushCurrent", "cuLaunchKernel", "cuCtxPopCurrent"] * 2, errors
    assert all("stream 0x5ea" in c for c in captured if "Launch" in c)


def test_a_forked_process_is_told_to_spawn(run):
    script = f"""
        import os
        {BIND}
        sys.stdout.flush()
        if os.fork() == 0:
            launch = lambda: run(x, y, post, comb, out)
            bind = lambda: Cuda().bind(code, "mhc_post__bf16_N4_D64", (CPU, 0))
            for call in (launch, bind):
                try:
                    call()
                except RuntimeError as error:
                    print(error, flush=True)
            del run
            os._exit(0)
        os.wait()
        run(x, y, post, comb, out)
        print("parent ran")
    """
    out, calls, errors = run(script)
    words = "this process was forked from one that used CUDA; start it with the spawn method"
    assert out.splitlines() == [f"mhc/post: {words}", words, "parent ran"], errors
    assert sum(c.startswith("cuLaunchKernel") for c in calls) == 1
    assert sum(c.startswith("cuModuleUnload") for c in calls) == 1


def test_every_device_has_its_own_module_and_context(run):
    script = """
        for device in (0, 1, 0):
            Cuda().bind(code, "mhc_post__bf16_N4_D64", (CPU, device))
    """
    _, calls, errors = run(script)
    assert [c for c in calls if "Retain" in c] == [
        "cuDevicePrimaryCtxRetain 0",
        "cuDevicePrimaryCtxRetain 1",
        "cuDevicePrimaryCtxRetain 0",
    ], errors
    assert sum("LoadData" in c for c in calls) == 3


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
