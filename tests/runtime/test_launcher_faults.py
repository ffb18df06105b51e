"""Launchers under arguments nobody means, and under many threads, with a thread sanitizer too."""

from __future__ import annotations

import subprocess
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm_ffi import libinfo

from tileproof import runtime
from tileproof.codegen.host import HostKernel, generate, plan
from tileproof.codegen.lower import lower
from tileproof.codegen.target import Target
from tileproof.codegen.user import specialize
from tileproof.runtime import load
from tileproof.runtime.bundle import read_manifest
from tileproof.runtime.signature import TORCH

from .fuzz import attack

CSRC = Path(runtime.__file__).parent / "csrc"
OPS = ("mhc/post", "mhc/sinkhorn", "norm/rmsnorm_unweighted")


@pytest.fixture(scope="module")
def launchers(bundle):
    """By op: a launcher on the null driver and tensors it takes."""
    library, manifest = load(bundle, backend="null"), read_manifest(bundle)
    found = {}
    for symbol, known in manifest["specializations"].items():
        facts = manifest["ops"][known["op"]]
        dims = {k: d["lo"] if d["multiple"] > 3 else 3 for k, d in facts["dims"].items()}
        dims |= {"P": 64, **known["dims"]}
        made = []
        for argument in facts["args"]:
            shape = [int(x) if x.isdigit() else dims[x] for x in argument["shape"]]
            name = known["types"].get(argument["dtype"], argument["dtype"])
            made.append(torch.zeros(shape, dtype=TORCH[name]))
        found[known["op"]] = library[known["op"]].kernel(symbol), made
    return found


@pytest.mark.parametrize("op", OPS)
def test_ten_thousand_argument_lists_and_never_a_crash(launchers, op):
    launcher, right = launchers[op]
    launcher(*right)

    @settings(max_examples=100)
    @given(st.randoms(use_true_random=False))
    def hundred_lists(random):
        for _ in range(100):
            attack(random, op, launcher, right)

    hundred_lists()
    launcher(*right)


def test_32_threads_launch_ten_thousand_times_each(launchers):
    launcher, right = launchers["mhc/post"]

    def work(_):
        mine = [x.clone() for x in right]
        bad = [mine[0], mine[1][:2], *mine[2:]]
        for i in range(10_000):
            launcher(*mine)
            if i % 1000 == 0:
                with pytest.raises(
                    ValueError, match=r"^mhc/post: y.shape\[0\]: got 2, expected M="
                ):
                    launcher(*bad)
        return True

    with ThreadPoolExecutor(32) as pool:
        assert all(pool.map(work, range(32)))


def test_32_threads_get_right_results_from_the_virtual_gpu(bundle, post_inputs):
    library = load(bundle, backend="virtual")
    expected = {M: library.mhc_post(*post_inputs(M)) for M in range(1, 33)}

    def work(M):
        inputs = post_inputs(M)
        return all(torch.equal(library.mhc_post(*inputs), expected[M]) for _ in range(20))

    with ThreadPoolExecutor(32) as pool:
        assert all(pool.map(work, expected))


KERNEL = """
    import tilelang.language as T

    def load(D=64):
        m = T.dynamic("m")

        @T.prim_func
        def kernel(x: T.Tensor((m, D), "float32"), y: T.Tensor((m, D), "float32")):
            with T.Kernel(T.ceildiv(m, 32), threads=128) as i:
                tile = T.alloc_shared((32, D), "float32")
                full = T.alloc_barrier(128)
                T.tma_copy(x[i * 32 : i * 32 + 32, 0:D], tile, barrier=full)
                T.barrier_arrive(full)
                T.barrier_wait(full, 0)
                T.copy(tile, y[i * 32, 0])

        return kernel
"""
MAIN = """
    #include <cstdio>
    #include <thread>
    #include <vector>
    #include "launcher.h"
    extern "C" int __tvm_ffi_bind_load(void*, const TVMFFIAny*, int32_t, TVMFFIAny*);
    extern "C" int __tvm_ffi_null_driver(void*, const TVMFFIAny*, int32_t, TVMFFIAny*);
    int main() {
      TVMFFIAny driver = {}, bind[7] = {}, bound = {};
      __tvm_ffi_null_driver(nullptr, nullptr, 0, &driver);
      bind[1] = driver;
      bind[2].v_int64 = kDLCPU;
      if (__tvm_ffi_bind_load(nullptr, bind, 7, &bound)) return 1;
      alignas(128) static float x[64 * 64], y[8][64 * 64];
      std::vector<std::thread> threads;
      int failed[8] = {};
      for (int t = 0; t < 8; ++t)
        threads.emplace_back([&, t] {
          for (int i = 0; i < 2000; ++i) {
            int64_t shape[2] = {1 + i % 64, 64}, wrong[2] = {1 + i % 64, 63};
            DLTensor in = {x, {kDLCPU, 0}, 2, {kDLFloat, 32, 1}, shape, nullptr, 0};
            DLTensor out = in;
            out.data = y[t];
            if (i % 100 == 99) out.shape = wrong;
            TVMFFIAny args[2] = {}, result = {};
            args[0].type_index = args[1].type_index = kTVMFFIDLTensorPtr;
            args[0].v_ptr = &in;
            args[1].v_ptr = &out;
            failed[t] += TVMFFIFunctionCall(bound.v_obj, args, 2, &result) != 0;
          }
        });
      for (auto& thread : threads) thread.join();
      for (int count : failed)
        if (count != 20) return 2;
      puts("done");
    }
"""


def test_the_launcher_has_no_race_under_the_thread_sanitizer(tmp_path):
    """Eight threads share one function and its kept tensor maps; one call in a hundred fails."""
    (tmp_path / "mine.py").write_text(textwrap.dedent(KERNEL))
    spec = specialize(Target(f"{tmp_path}/mine.py:load"), None, "sm_90a")
    launches = plan(lower(spec, "sm_90a"))
    assert len(launches[0].maps) == 2
    (tmp_path / "kernels.cpp").write_text(generate([HostKernel(spec, (launches,))]))
    (tmp_path / "main.cpp").write_text(textwrap.dedent(MAIN))
    library = Path(libinfo.find_libtvm_ffi())
    sources = ["kernels.cpp", "main.cpp", CSRC / "launcher.cpp", CSRC / "null_driver.cpp"]
    includes = [f"-I{path}" for path in (CSRC, *libinfo.include_paths())]
    flags = ["-std=c++17", "-O1", "-g", "-fsanitize=thread", *includes]
    command = ["g++", *flags, *sources, library, f"-Wl,-rpath,{library.parent}", "-o", "race"]
    done = subprocess.run([*map(str, command)], cwd=tmp_path, capture_output=True, text=True)
    if "tsan" in done.stderr and "cannot find" in done.stderr:
        pytest.skip("this compiler came without its thread sanitizer")
    assert done.returncode == 0, done.stderr
    # The sanitizer wants the address space where it was before randomisation grew.
    run = ["setarch", "-R", "./race"]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr[:2000]
