"""Launchers under arguments nobody means, and under many threads, with a thread sanitizer too."""

from __future__ import annotations

import os
import subprocess
import textwrap
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import permutations
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
from tileproof.dsl import load_library
from tileproof.runtime import load, virtual

from .fuzz import argument_list, attack, hosted, null_launchers, right_arrays

LISTS = 200  # for the launcher of every op; `python -m tests.runtime.fuzz` draws 10,000
CSRC = Path(runtime.__file__).parent / "csrc"


@pytest.fixture(scope="module")
def launchers(tmp_path_factory):
    """By op of the library: its launcher on the null driver, its specialization, and arrays."""
    hosts = {name: hosted(op, None) for name, op in load_library().items()}
    folder = tmp_path_factory.mktemp("launchers")
    functions = null_launchers([host for host, _ in hosts.values()], folder)
    return {name: (functions[name], h.spec, right) for name, (h, right) in hosts.items()}


@pytest.mark.parametrize("op", sorted(load_library()))
def test_any_argument_list_gets_the_error_it_deserves_or_none(launchers, op):
    launcher, spec, right = launchers[op]
    launcher(*right)
    taken = []

    @settings(max_examples=LISTS // 20)
    @given(st.randoms(use_true_random=True))
    def twenty_lists(draw):
        taken.extend(attack(spec, launcher, argument_list(draw, right)) for _ in range(20))

    twenty_lists()
    assert LISTS / 10 < sum(taken) < len(taken) == LISTS
    launcher(*right)


@pytest.mark.parametrize("op", ["compressor/pool_fp4", "compressor/pool_fp8", "norm/kv_fp8"])
def test_parts_of_pages_are_taken_where_they_have_no_byte_in_common(launchers, op):
    """Each written tensor with another one of its pages at every place of it."""
    launcher, spec, _ = launchers[op]
    point = spec.op.shape_set("tiny")[1][0]
    least = spec.sizes(**point)
    right = right_arrays(spec, point | {pitch: 2 * least[pitch] for pitch in spec.op.pitches})
    launcher(*right)
    parts = [i for i, a in enumerate(spec.args) if a.strides and a.role == "inout"]
    taken = []
    for i, j in permutations(parts, 2):
        page = right[i].strides[0] * right[i].itemsize
        for place in range(0, page, 16):
            arguments = list(right)
            arguments[j] = replace(right[j], data=right[i].data + place)
            taken.append(attack(spec, launcher, arguments))
    assert 0 < sum(taken) < len(taken)


def test_32_threads_launch_ten_thousand_times_each(bundle, post_inputs):
    launcher = load(bundle, backend="null").mhc_post.kernel("mhc_post__bf16_N4_D64")

    def work(_):
        mine = post_inputs(3)
        mine.append(mine[0].clone())
        bad = [mine[0], mine[1][:2], *mine[2:]]
        for i in range(10_000):
            launcher(*mine)
            if i % 1000 == 0:
                with pytest.raises(
                    ValueError, match=r"^mhc/post: y.shape\[0\]: got 2, expected M=3"
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
    #include <dlfcn.h>
    #include <cstdio>
    #include <cstdlib>
    #include <cstring>
    #include <thread>
    #include <vector>
    #include "launcher.h"
    extern "C" int __tvm_ffi_bind_load(void*, const TVMFFIAny*, int32_t, TVMFFIAny*);
    extern "C" int __tvm_ffi_null_driver(void*, const TVMFFIAny*, int32_t, TVMFFIAny*);
    extern "C" int __tvm_ffi_cuda_driver(void*, const TVMFFIAny*, int32_t, TVMFFIAny*);
    constexpr int kRows = 64, kWidth = 64, kThreads = 8;

    // The table of a driver: null, cuda, or of the library at a path.
    int64_t driver(const char* name) {
      TVMFFIAny table = {};
      if (!strcmp(name, "null")) __tvm_ffi_null_driver(nullptr, nullptr, 0, &table);
      else if (!strcmp(name, "cuda")) __tvm_ffi_cuda_driver(nullptr, nullptr, 0, &table);
      else
        table.v_int64 = reinterpret_cast<int64_t (*)()>(
            dlsym(dlopen(name, RTLD_NOW | RTLD_GLOBAL), "vgpu_driver"))();
      return table.v_int64;
    }

    // race DRIVER IMAGE LAUNCHES COMPARE
    int main(int, char** argv) {
      const int count = atoi(argv[3]);
      const auto bind = [&](TVMFFIAny* bound) {
        TVMFFIAny args[7] = {};
        args[1].v_int64 = driver(argv[1]);
        args[2].v_int64 = kDLCPU;
        args[4].v_int64 = reinterpret_cast<int64_t>(argv[2]);
        args[5].v_int64 = static_cast<int64_t>(strlen(argv[2])) + 1;
        return __tvm_ffi_bind_load(nullptr, args, 7, bound);
      };
      TVMFFIAny shared = {}, own[kThreads] = {};
      alignas(128) static float x[kRows * kWidth], y[kThreads][kRows * kWidth];
      for (int i = 0; i < kRows * kWidth; ++i) x[i] = static_cast<float>(i + 1);
      int failed[kThreads] = {};
      const auto in_threads = [](const auto& work) {
        std::vector<std::thread> threads;
        for (int t = 0; t < kThreads; ++t) threads.emplace_back(work, t);
        for (auto& thread : threads) thread.join();
      };
      in_threads([&](int t) { failed[t] += bind(&own[t]); });
      if (bind(&shared)) return 1;
      in_threads([&](int t) {
        for (int i = 0; i < count; ++i) {
          int64_t shape[2] = {1 + i % kRows, kWidth}, wrong[2] = {1 + i % kRows, kWidth - 1};
          DLTensor in = {x, {kDLCPU, 0}, 2, {kDLFloat, 32, 1}, shape, nullptr, 0};
          DLTensor out = in;
          out.data = y[t];
          if (i % 10 == 9) out.shape = wrong;
          TVMFFIAny args[2] = {}, result = {};
          args[0].type_index = args[1].type_index = kTVMFFIDLTensorPtr;
          args[0].v_ptr = &in;
          args[1].v_ptr = &out;
          memset(y[t], 0, sizeof y[t]);
          failed[t] += TVMFFIFunctionCall((i % 2 ? own[t] : shared).v_obj, args, 2, &result) != 0;
          const size_t made = i % 10 == 9 ? 0 : static_cast<size_t>(shape[0] * kWidth);
          if (*argv[4] == '1' &&
              (memcmp(x, y[t], made * sizeof(float)) || (made < kRows * kWidth && y[t][made])))
            failed[t] += 1000;
        }
        TVMFFIObjectDecRef(own[t].v_obj);
      });
      for (int fails : failed)
        if (fails != count / 10) return printf("%d failed\\n", fails), 2;
      TVMFFIObjectDecRef(shared.v_obj);
      puts("done");
    }
"""


@pytest.fixture(scope="module")
def race(tmp_path_factory):
    """A program built with the thread sanitizer, and the CUDA text of its kernel: eight threads
    bind, call one shared function and one of their own, every tenth time wrongly, and unload."""
    folder = tmp_path_factory.mktemp("race")
    (folder / "mine.py").write_text(textwrap.dedent(KERNEL))
    spec = specialize(Target(f"{folder}/mine.py:load"), None, "sm_90a")
    lowered = lower(spec, "sm_90a")
    launches = plan(lowered)
    assert len(launches[0].maps) == 2
    (folder / "kernels.cpp").write_text(generate([HostKernel(spec, (launches,))]))
    (folder / "main.cpp").write_text(textwrap.dedent(MAIN))
    library = Path(libinfo.find_libtvm_ffi())
    sources = ["kernels.cpp", "main.cpp"]
    sources += [CSRC / f"{name}.cpp" for name in ("launcher", "null_driver", "cuda_driver")]
    includes = [f"-I{path}" for path in (CSRC, *libinfo.include_paths())]
    flags = ["-std=c++17", "-O1", "-g", "-fsanitize=thread", *includes]
    command = ["g++", *flags, *sources, library, f"-Wl,-rpath,{library.parent}", "-ldl"]
    command += ["-o", "race"]
    done = subprocess.run([*map(str, command)], cwd=folder, capture_output=True, text=True)
    if "tsan" in done.stderr and "cannot find" in done.stderr:
        pytest.skip("this compiler came without its thread sanitizer")
    assert done.returncode == 0, done.stderr
    return folder / "race", lowered.cuda, launches[0].kernel


@pytest.mark.parametrize(("driver", "launches"), [("null", 2000), ("cuda", 500), ("virtual", 30)])
def test_the_launcher_has_no_race_under_the_thread_sanitizer(race, tmp_path, driver, launches):
    """The launcher is instrumented, and so are the null driver and the CUDA driver before a
    stand-in for libcuda. The virtual GPU, whose threads change stacks, is not: it is called."""
    program, cuda, kernel = race
    image, environment = "", os.environ | {"TSAN_OPTIONS": "ignore_noninstrumented_modules=1"}
    if driver == "virtual":
        image = str(virtual.build(cuda, [kernel], checked=False, arch="sm_90a"))
        driver = str(virtual.build_library())
    if driver == "cuda":
        source = Path(__file__).with_name("mock_libcuda.c")
        command = ["gcc", "-shared", "-fPIC", "-o", str(tmp_path / "libcuda.so.1"), str(source)]
        subprocess.run(command, check=True)
        environment |= {"LD_LIBRARY_PATH": str(tmp_path), "MOCK_CUDA_LOG": os.devnull}
    # The sanitizer wants the address space where it was before randomisation grew.
    command = ["setarch", "-R", program, driver, image, launches, int(image != "")]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr[:2000]
