"""Building: what is refused, and the cache."""

import subprocess

import pytest
import torch

from tileproof.runtime import virtual
from tileproof.runtime.virtual import compile as build_module

from .support import kernel, run


@pytest.mark.parametrize(
    "body",
    [
        "tl::tma_nonexistent(0);",
        "tl::mma_sync<tl::DataType::kBit1, tl::DataType::kBit1, tl::DataType::kInt32, 16, 8, 256, "
        "false, true>((int*)0, (unsigned*)0, (unsigned*)0);",
        "y[0] = (int)clock();",
        "y[0] = __tl_cvt_f32x4_to_e4m3x4_rs_sat(make_float4(1, 2, 3, 4), 5u);",
        "tl::cp_async_gs<12>((void*)0, (void*)0);",
    ],
)
def test_what_is_not_modelled_does_not_compile(body):
    with pytest.raises(virtual.CompileError, match="error"):
        virtual.VirtualModule(kernel("int* y", body))


def test_a_missing_compiler_is_one_clear_sentence(monkeypatch):
    build_module.compiler.cache_clear()
    monkeypatch.setenv("PATH", "/nonexistent")
    try:
        with pytest.raises(FileNotFoundError, match=r"needs a C\+\+ compiler.*install g\+\+"):
            virtual.build(kernel("int* y", "y[0] = 1;"), ["k"], checked=False)
    finally:
        build_module.compiler.cache_clear()


def test_signatures_read_types_names_and_shared_memory():
    text = kernel(
        "float* __restrict__ y, const bfloat16_t* __restrict__ x, int64_t n",
        "extern __shared__ __align__(1024) uchar buf_dyn_shmem[];",
    )
    assert virtual.signatures(text) == {
        "k": virtual.Signature(
            "k",
            (("float*", "y"), ("const bfloat16_t*", "x"), ("int64_t", "n")),
            ("uchar", "buf_dyn_shmem"),
        )
    }


def test_a_kernel_the_text_lacks():
    with pytest.raises(KeyError, match="no kernel other in the CUDA text, it defines k"):
        virtual.build(kernel("int* y", ""), ["other"], checked=False)


def test_the_second_build_comes_from_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TILEPROOF_CACHE", str(tmp_path))
    text = kernel("int* y", "y[tid] = 1;")
    first = virtual.build(text, ["k"], checked=False)
    stamp = first.stat().st_mtime_ns
    assert tmp_path in first.parents
    assert virtual.build(text, ["k"], checked=False) == first
    assert first.stat().st_mtime_ns == stamp
    assert virtual.build(text, ["k"], checked=True) != first


@pytest.mark.parametrize("checked", [False, True])
def test_kernels_share_their_parsed_headers(tmp_path, monkeypatch, checked):
    monkeypatch.setenv("TILEPROOF_CACHE", str(tmp_path))
    calls = []
    compile_ = build_module._run
    monkeypatch.setattr(
        build_module, "_run", lambda args, of: (calls.append(args), compile_(args, of))
    )
    for value in range(2):
        virtual.build(kernel("int* y", f"y[tid] = {value};"), ["k"], checked=checked)
    (header,) = tmp_path.rglob("*.gch")
    assert sum("c++-header" in call for call in calls) == 1
    unit = next(tmp_path.rglob("*.cpp"))
    flags = calls[1][: calls[1].index("-c")]
    command = [build_module.compiler()[0], *flags, "-H", "-c", str(unit), "-o", "/dev/null"]
    assert f"! {header}" in subprocess.run(command, capture_output=True, text=True).stderr


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([torch.zeros(1)], "takes 2 arguments, got 1"),
        ([torch.zeros(1), 3], "x must be a CPU tensor, got 3"),
    ],
)
def test_arguments_that_do_not_fit_the_signature(args, words):
    with pytest.raises(TypeError, match=words):
        run("float* y, const float* x", "", args)


def test_options_nest_and_come_back():
    before = virtual.current_options()
    with virtual.options(seed=7), virtual.options(late=False):
        assert virtual.current_options() == virtual.VirtualOptions(late=False, seed=7)
    assert virtual.current_options() == before
