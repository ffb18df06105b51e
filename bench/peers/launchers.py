"""What a launch costs the host in other systems, with the launch itself left out."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Call = Callable[..., object]

# What TileLang's host code asks its environment for: the launch and the choice of a device.
_NOTHING = """
#include <tvm/ffi/c_api.h>
static int nothing(void*, const TVMFFIAny*, int32_t, TVMFFIAny*) { return 0; }
static int nothing_found(void*, const char*, void** out) {
  return TVMFFIFunctionCreate(nullptr, nothing, nullptr, out);
}
"""


def tilelang_host(prim_func: Any, stem: Path) -> Call:
    """The host function that TileLang generates for sm_90a, launching nothing; its files are called
    like `stem`."""
    import tilelang
    import tvm_ffi
    from tilelang import tvm
    from tvm_ffi import libinfo

    target = tvm.target.Target({"kind": "cuda", "arch": "sm_90a"})
    with target:
        lowered = tilelang.lower(
            prim_func.with_attr("global_symbol", "peer"),
            target=target,
            target_host="c",
            enable_host_codegen=True,
            enable_device_compile=False,
        )
    own = Path(tilelang.__file__).parent / "3rdparty" / "tvm" / "include"
    source, library = stem.with_suffix(".cpp"), stem.with_suffix(".so")
    text = lowered.rt_mod.inspect_source()
    text = text.replace(".device.device_type) == 2", ".device.device_type) == 1")  # on CPU tensors
    source.write_text(_NOTHING + text.replace("TVMBackendGetFuncFromEnv", "nothing_found"))
    includes = [f"-I{path}" for path in (own, *libinfo.include_paths())]
    command = ["g++", "-O2", "-fPIC", "-shared", "-w", *includes, source, "-o", library]
    subprocess.run([*map(str, command), str(libinfo.find_libtvm_ffi())], check=True)
    return tvm_ffi.load_module(str(library))["peer"]  # type: ignore[no-any-return]


_FLOOR = """
#include <cstdint>
extern "C" {
int aoti_torch_library_init_fragment(const char*, const char*, uint32_t, void**);
int aoti_torch_library_init_impl(const char*, const char*, const char*, uint32_t, void**);
int aoti_torch_library_def(void*, const char*);
int aoti_torch_library_impl(void*, const char*, void (*)(uint64_t*, uint64_t, uint64_t));
int aoti_torch_delete_tensor_object(void*);
int aoti_torch_get_dtype(void*, int32_t*);
int aoti_torch_get_sizes(void*, int64_t**);
int aoti_torch_get_strides(void*, int64_t**);
int aoti_torch_empty_strided(int64_t, const int64_t*, const int64_t*, int32_t, int32_t, int32_t,
                             void**);
}
static void drop(uint64_t* stack, uint64_t first, uint64_t count) {
  for (uint64_t i = first; i < count; ++i)
    aoti_torch_delete_tensor_object(reinterpret_cast<void*>(stack[i]));
}
static void empty(uint64_t* stack, uint64_t count, uint64_t) { drop(stack, 1, count); }
static void allocates(uint64_t* stack, uint64_t count, uint64_t) {
  void *first = reinterpret_cast<void*>(stack[0]), *made;
  int64_t *sizes, *strides;
  int32_t dtype;
  aoti_torch_get_sizes(first, &sizes);
  aoti_torch_get_strides(first, &strides);
  aoti_torch_get_dtype(first, &dtype);
  aoti_torch_empty_strided(2, sizes, strides, dtype, 0, 0, &made);  // device 0: the CPU
  drop(stack, 0, count);
  stack[0] = reinterpret_cast<uint64_t>(made);
}
extern "C" void define(const char* empty_schema, const char* allocates_schema) {
  void *library, *kernels;
  aoti_torch_library_init_fragment("tileproof_bench", "floor", 0, &library);
  aoti_torch_library_def(library, empty_schema);
  aoti_torch_library_def(library, allocates_schema);
  aoti_torch_library_init_impl("tileproof_bench", "CPU", "floor", 0, &kernels);
  aoti_torch_library_impl(kernels, "empty", empty);
  aoti_torch_library_impl(kernels, "allocates", allocates);
}
"""


def torch_floors(tensors: int, folder: Path) -> tuple[Call, Call]:
    """Torch ops of `tensors` inputs on the CPU: one that gives back its first, the dispatcher and
    nothing else; one that returns a new tensor like its first, a matrix."""
    source, library = folder / "floor.cpp", folder / "floor.so"
    source.write_text(_FLOOR)
    torch_lib = Path(torch.__file__).parent / "lib"
    command = ["g++", "-O2", "-fPIC", "-shared", source, "-o", library, f"-L{torch_lib}"]
    subprocess.run([*map(str, command), "-ltorch_cpu"], check=True)
    arguments = ", ".join(f"Tensor x{i}" for i in range(tensors))
    schemas = [f"{name}({arguments}) -> Tensor".encode() for name in ("empty", "allocates")]
    ctypes.CDLL(str(library)).define(*schemas)
    return torch.ops.tileproof_bench.empty, torch.ops.tileproof_bench.allocates


def triton_kernel() -> Call:
    """``kernel[grid]`` of eight tensors and two sizes with Triton's binder, cache and hooks, on a
    driver that launches nothing: even Triton's own C launcher is left out."""
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget

    class Nothing:
        def __init__(self, *_: Any) -> None: ...

        def __call__(self, *_: Any) -> None: ...

    class Utils:
        def load_binary(self, *_: Any) -> tuple[int, int, int, int, int]:
            return 1, 1, 32, 0, 1024

        def get_device_properties(self, _: int) -> dict[str, int]:
            return {"max_shared_mem": 227 * 1024, "max_num_regs": 65536, "warpSize": 32}

    class Driver:
        launcher_cls, utils = Nothing, Utils()

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, _: int) -> int:
            return 0

        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", 90, 32)

    @triton.jit
    def peer(a, b, c, d, e, f, g, out, m, n, D: tl.constexpr):  # type: ignore[no-untyped-def]
        at = tl.program_id(0) * D + tl.arange(0, D)
        rows = at < m * D
        total = tl.load(a + at, rows) + tl.load(b + at, rows) + tl.load(c + at, rows)
        total += tl.load(d + at, rows) + tl.load(e + at, rows) + tl.load(f + at, rows)
        tl.store(out + at, total + tl.load(g + at, at < n * D, 0.0), rows)

    triton.runtime.driver.set_active(Driver())

    def call(*tensors: torch.Tensor) -> None:
        m, n = tensors[0].shape[0], tensors[6].shape[0]
        peer[(m,)](*tensors, m, n, D=64)

    return call
