"""Loading libvgpu, setting how it runs, and launching kernels without a generated launcher."""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from .compile import Signature, build, build_library, lines, signatures
from .tensor_map import TensorMap

#: How threads and blocks take turns. "ring": warps in ascending order, each until it blocks, blocks
#: in ascending order. "reverse": warps, lanes, blocks in descending order. "ahead": a random warp
#: runs until it blocks, blocks are shuffled. "interleave": warps are also left in between.
SCHEDULES = ("ring", "reverse", "ahead", "interleave")


class VirtualError(RuntimeError):
    """A launch failed: the words name the kernel, block, thread and what it did."""


@dataclass(frozen=True)
class VirtualOptions:
    """How the virtual GPU runs kernels.

    late: perform cp.async when it is waited for (True) or when it is issued (False).
    seed: of the random schedules.
    schedule: one of `SCHEDULES`; None takes the seed's: 0 "ring", odd "ahead", even "interleave".
    threads: OS threads that run blocks, 0 for one per core.
    checked: build kernels with every load and store checked (bounds, const, alignment), at about
        twice the time. Without it only what helpers touch is checked (cp.async, ldmatrix, wgmma,
        256-bit accesses, atomics), and memory that is not mapped.
    steps: accesses that one block may make (of those that are checked) before it counts as endless.
    seconds: time that one launch may take, 0 for any; for loops that access nothing.
    """

    late: bool = True
    seed: int = 0
    threads: int = 0
    checked: bool = False
    steps: int = 1 << 30
    seconds: float = 0.0
    schedule: str | None = None

    @property
    def order(self) -> str:
        """The schedule, one of `SCHEDULES`."""
        if self.schedule is not None:
            return self.schedule
        return "ahead" if self.seed % 2 else "interleave" if self.seed else "ring"


_DEFAULT = VirtualOptions()
_options = contextvars.ContextVar("virtual_options", default=_DEFAULT)


def current_options() -> VirtualOptions:
    """The options launches made here and now run with."""
    return _options.get()


@functools.cache
def library() -> ctypes.CDLL:
    """libvgpu, built on first use."""
    handle = ctypes.CDLL(str(build_library()), mode=ctypes.RTLD_GLOBAL)
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    handle.vgpu_driver.restype = ctypes.POINTER(_Driver)
    handle.vgpu_set_options.argtypes = [
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_uint64,
        ctypes.c_int,
        ctypes.c_uint64,
        ctypes.c_double,
    ]
    handle.vgpu_register.argtypes = [pointer, size, ctypes.c_char_p, pointer]
    handle.vgpu_tensor_map_error.restype = ctypes.c_char_p
    handle.vgpu_error_site.restype = ctypes.c_uint64
    handle.vgpu_sanitizer_new.argtypes = [size]
    handle.vgpu_sanitizer_new.restype = pointer
    handle.vgpu_sanitizer_delete.argtypes = [pointer]
    handle.vgpu_sanitizer_use.argtypes = [pointer]
    handle.vgpu_sanitizer_argument.argtypes = [pointer, pointer, size, ctypes.c_bool]
    handle.vgpu_sanitizer_count.argtypes = [pointer]
    handle.vgpu_sanitizer_count.restype = size
    handle.vgpu_sanitizer_dropped.argtypes = [pointer]
    handle.vgpu_sanitizer_dropped.restype = ctypes.c_uint64
    handle.vgpu_sanitizer_finding.argtypes = [pointer, size, pointer]
    handle.vgpu_sanitizer_unwritten.argtypes = [pointer, pointer]
    handle.vgpu_sanitizer_unwritten.restype = ctypes.c_int64
    handle.vgpu_counting_new.restype = pointer
    handle.vgpu_counting_delete.argtypes = [pointer]
    handle.vgpu_counting_use.argtypes = [pointer]
    handle.vgpu_counting_use.restype = pointer
    handle.vgpu_counting_launches.argtypes = [pointer]
    handle.vgpu_counting_launches.restype = size
    handle.vgpu_counting_launch.argtypes = [pointer, size, pointer, pointer, size]
    handle.vgpu_counting_launch.restype = ctypes.c_char_p
    handle.vgpu_guarded_new.argtypes = [size]
    handle.vgpu_guarded_new.restype = pointer
    handle.vgpu_guarded_delete.argtypes = [pointer, size]
    return handle


class _Dim3(ctypes.Structure):
    _fields_ = [("x", ctypes.c_uint32), ("y", ctypes.c_uint32), ("z", ctypes.c_uint32)]


class _Driver(ctypes.Structure):
    """`tp_driver` of runtime/csrc/driver.h."""

    _fields_ = [
        ("abi", ctypes.c_uint32),
        ("name", ctypes.c_char_p),
        (
            "module_load",
            ctypes.CFUNCTYPE(
                ctypes.c_int,
                ctypes.c_int,
                ctypes.c_char_p,
                ctypes.c_size_t,
                ctypes.POINTER(ctypes.c_void_p),
            ),
        ),
        ("module_unload", ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)),
        (
            "function_get",
            ctypes.CFUNCTYPE(
                ctypes.c_int,
                ctypes.c_void_p,
                ctypes.c_char_p,
                ctypes.c_uint32,
                ctypes.POINTER(ctypes.c_void_p),
            ),
        ),
        (
            "launch",
            ctypes.CFUNCTYPE(
                ctypes.c_int,
                ctypes.c_void_p,
                _Dim3,
                _Dim3,
                _Dim3,
                ctypes.c_uint32,
                ctypes.c_void_p,
                ctypes.POINTER(ctypes.c_void_p),
            ),
        ),
        ("error", ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_int)),
        ("launch_cooperative", ctypes.c_void_p),  # the launchers' business, not Python's
        ("tensor_map", ctypes.c_void_p),
    ]


def _table() -> _Driver:
    return library().vgpu_driver().contents


def driver() -> int:
    """Address of the virtual GPU's `tp_driver` table; builds libvgpu on first use."""
    return ctypes.addressof(_table())


def _apply(chosen: VirtualOptions) -> None:
    if chosen.order not in SCHEDULES:
        raise ValueError(f"schedule: got {chosen.schedule!r}, expected one of {SCHEDULES}")
    order = SCHEDULES.index(chosen.order)
    library().vgpu_set_options(
        chosen.late, order, chosen.seed, chosen.threads, chosen.steps, chosen.seconds
    )


@contextlib.contextmanager
def options(**changes: Any) -> Iterator[VirtualOptions]:
    """Changes fields of `VirtualOptions` for launches within the block, on this thread.

    `checked` takes effect where a kernel is built, the others where it is launched.
    """
    token = _options.set(replace(_options.get(), **changes))
    _apply(_options.get())
    try:
        yield _options.get()
    finally:
        _options.reset(token)
        _apply(_options.get())


@contextlib.contextmanager
def registered(tensors: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Launches within the block may touch global memory of these CPU tensors only, by name.

    A tensor with gaps between its elements is registered from its first to its last byte.
    """
    handle = library()
    handle.vgpu_clear_ranges()
    for name, tensor in tensors.items():
        if tensor.numel():
            last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
            size = (last + 1) * tensor.element_size()
            allocation = tensor.untyped_storage().data_ptr()
            handle.vgpu_register(tensor.data_ptr(), size, name.encode(), allocation)
    try:
        yield
    finally:
        handle.vgpu_clear_ranges()


_SCALARS: dict[str, Any] = {
    "bool": ctypes.c_bool,
    "int": ctypes.c_int32,
    "unsigned": ctypes.c_uint32,
    "uint": ctypes.c_uint32,
    "unsigned int": ctypes.c_uint32,
    "int32_t": ctypes.c_int32,
    "uint32_t": ctypes.c_uint32,
    "int64_t": ctypes.c_int64,
    "uint64_t": ctypes.c_uint64,
    "long long": ctypes.c_int64,
    "float": ctypes.c_float,
    "double": ctypes.c_double,
}


def _three(size: Sequence[int]) -> _Dim3:
    return _Dim3(*size, *[1] * (3 - len(size)))


class VirtualModule:
    """Kernels of one CUDA text, built and loaded.

    cuda_text: as TileLang generates it, unmodified.
    kernels: names to export; all that the text defines if None.
    checked: overrides the current options' `checked`.
    arch: what the text was generated for; a helper it lacks does not compile. None: all compile.

    Raises what `build` raises.
    """

    def __init__(
        self,
        cuda_text: str,
        kernels: Sequence[str] | None = None,
        *,
        checked: bool | None = None,
        arch: str | None = None,
    ):
        known = signatures(cuda_text)
        self._cuda_text = cuda_text
        self.kernels: dict[str, Signature] = {name: known[name] for name in kernels or known}
        chosen = _options.get().checked if checked is None else checked
        #: The shared object.
        self.path: Path = build(cuda_text, list(self.kernels), checked=chosen, arch=arch)
        path = bytes(self.path)
        self._table = _table()
        self._module = ctypes.c_void_p()
        self._check(self._table.module_load(0, path, len(path) + 1, ctypes.byref(self._module)))

    def _check(self, code: int) -> None:
        if code:
            raise VirtualError(self._table.error(code).decode())

    def launch(
        self,
        kernel: str,
        grid: Sequence[int],
        block: Sequence[int],
        smem: int,
        args: Sequence[torch.Tensor | TensorMap | int | float],
        *,
        cluster: Sequence[int] = (),
        cooperative: bool = False,
        options: VirtualOptions | None = None,
    ) -> None:
        """Runs a kernel to its end.

        grid, block: 1 to 3 sizes, x first. smem: bytes of dynamic shared memory.
        args: in the order of the C signature; a CPU tensor for a pointer, a `TensorMap` for a
            tensor map, a number for a scalar.
        cluster: sizes of a cluster of blocks. cooperative: all blocks run at once.
        options: of this launch; the current ones if None. (`checked` belongs to the module.)

        Raises VirtualError for whatever the kernel did wrong, TypeError for arguments that do not
        fit the signature, ValueError for a tensor map the driver would refuse.
        """
        signature = self.kernels[kernel]
        if len(args) != len(signature.parameters):
            raise TypeError(
                f"kernel {kernel} takes {len(signature.parameters)} arguments, got {len(args)}"
            )
        values: list[Any] = []
        tensors: dict[str, torch.Tensor] = {}
        for (kind, name), value in zip(signature.parameters, args, strict=True):
            if kind.endswith("*"):
                if not isinstance(value, torch.Tensor) or value.device.type != "cpu":
                    raise TypeError(f"kernel {kernel}: {name} must be a CPU tensor, got {value!r}")
                values.append(ctypes.c_void_p(value.data_ptr()))
                tensors[name] = value
            elif kind.endswith("CUtensorMap"):
                if not isinstance(value, TensorMap):
                    raise TypeError(f"kernel {kernel}: {name} must be a TensorMap, got {value!r}")
                values.append(value.encode(library()))
                tensors[name] = value.tensor
            else:
                scalar = _SCALARS.get(kind.removeprefix("const "))
                if scalar is None:
                    raise TypeError(f"kernel {kernel}: cannot pass {name} of type {kind}")
                values.append(scalar(value))
        pointers = (ctypes.c_void_p * len(values))(
            *(ctypes.cast(ctypes.pointer(v), ctypes.c_void_p) for v in values)
        )
        function = ctypes.c_void_p()
        self._check(
            self._table.function_get(self._module, kernel.encode(), smem, ctypes.byref(function))
        )
        _apply(options or _options.get())
        if cooperative:
            library().vgpu_set_cooperative()
        with registered(tensors):
            code = self._table.launch(
                function, _three(grid), _three(cluster), _three(block), smem, None, pointers
            )
        if code:
            words = self._table.error(code).decode()
            site = library().vgpu_error_site()
            line = lines(self.path, [site]).get(site)
            if line is not None:
                text = self._cuda_text.splitlines()[line - 1].strip()
                words += f"; line {line} of the CUDA text: {text}"
            raise VirtualError(words)

    def __del__(self) -> None:
        module = getattr(self, "_module", None)
        if module:
            self._table.module_unload(module)
