"""The first CUDA device, through libcuda alone, so that any build of torch will do."""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tileproof.codegen.device import compile_cuda
from tileproof.dsl import ARCHS
from tileproof.runtime.virtual import Signature, TensorMap, signatures
from tileproof.runtime.virtual.device import _SCALARS

_MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_...
# CU_LAUNCH_ATTRIBUTE_COOPERATIVE, _CLUSTER_DIMENSION, _PROGRAMMATIC_STREAM_SERIALIZATION
_COOPERATIVE, _CLUSTER, _OVERLAP = 2, 4, 6


@dataclass(frozen=True)
class Card:
    """name and driver: as the driver reports them. arch: the target whose cubins it loads."""

    name: str
    driver: str
    capability: tuple[int, int]

    @property
    def arch(self) -> str | None:
        fits = [a.name for a in ARCHS.values() if self.capability in a.runs_on]
        return fits[-1] if fits else None

    @property
    def texts(self) -> list[str]:
        """Architectures whose generated text this card can run, compiled for its own: what needs
        no more than sm_80 or sm_89 runs on every later card."""
        if self.arch is None:
            return []
        older = [a for a in ("sm_80", "sm_89") if int(a[3:]) <= 10 * self.capability[0] + 9]
        return list(dict.fromkeys([a for a in older if _number(a) <= _number(self.arch)])) + (
            [] if self.arch in older else [self.arch]
        )


def _number(arch: str) -> int:
    return int(arch[3:].rstrip("a"))


class Attribute(ctypes.Structure):
    """CUlaunchAttribute: of its value the first words, which are all that is used here."""

    _fields_ = [
        ("id", ctypes.c_int),
        ("_pad", ctypes.c_char * 4),
        ("value", ctypes.c_uint32 * 16),
    ]


class LaunchConfig(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = [
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("smem", ctypes.c_uint32),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(Attribute)),
        ("count", ctypes.c_uint32),
    ]


class CardError(RuntimeError):
    """A call of the driver failed."""


@functools.cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


def _call(name: str, *args: Any) -> None:
    code = getattr(_library(), name)(*args)
    if code:
        words = ctypes.c_char_p()
        _library().cuGetErrorString(code, ctypes.byref(words))
        raise CardError(f"{name}: {code} ({(words.value or b'no description').decode()})")


@functools.cache
def find() -> tuple[Card | None, str]:
    """The card, and why there is none. Its primary context is current from here on."""
    try:
        _library()
        _call("cuInit", 0)
        device, context, version = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_int()
        _call("cuDeviceGet", ctypes.byref(device), 0)
        name = ctypes.create_string_buffer(256)
        _call("cuDeviceGetName", name, 256, device)
        numbers = []
        for attribute in (_MAJOR, _MINOR):
            value = ctypes.c_int()
            _call("cuDeviceGetAttribute", ctypes.byref(value), attribute, device)
            numbers.append(value.value)
        _call("cuDriverGetVersion", ctypes.byref(version))
        _call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        _call("cuCtxSetCurrent", context)
    except (OSError, CardError) as error:
        return None, str(error)
    driver = f"{version.value // 1000}.{version.value % 1000 // 10}"
    card = Card(name.value.decode(), driver, (numbers[0], numbers[1]))
    if card.arch is None:
        return None, f"{card.name} has compute capability {numbers}, which no target here is for"
    return card, ""


class CardModule:
    """Kernels of one CUDA text on the card; launched as a ``VirtualModule`` is."""

    def __init__(self, cuda: str, arch: str) -> None:
        self.kernels: dict[str, Signature] = signatures(cuda)
        self._module = ctypes.c_void_p()
        image = compile_cuda(cuda, arch, contract_fma=False).cubin
        _call("cuModuleLoadData", ctypes.byref(self._module), image)

    def launch(
        self,
        kernel: str,
        grid: Sequence[int],
        block: Sequence[int],
        smem: int,
        args: Sequence[Any],
        *,
        cluster: Sequence[int] = (),
        cooperative: bool = False,
        times: int = 1,
    ) -> None:
        """Runs a kernel `times` times to its end on copies of the CPU tensors in `args`, and copies
        them back. Launches after the first may begin before the one before has ended
        (programmatic dependent launch)."""
        function = ctypes.c_void_p()
        _call("cuModuleGetFunction", ctypes.byref(function), self._module, kernel.encode())
        if smem > 48 << 10:
            _call("cuFuncSetAttribute", function, _MAX_DYNAMIC_SHARED, smem)
        kinds = [kind for kind, _ in self.kernels[kernel].parameters]
        with contextlib.ExitStack() as stack:
            memory = _Memory(stack)
            values = [_value(kind, arg, memory) for kind, arg in zip(kinds, args, strict=True)]
            pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(v) for v in values))
            for number in range(times):
                wanted = [(_COOPERATIVE, [1])] if cooperative else []
                wanted += [(_CLUSTER, _three(cluster))] if set(cluster) - {1} else []
                wanted += [(_OVERLAP, [1])] if number else []
                attributes = (Attribute * len(wanted))()
                for attribute, (kind, words) in zip(attributes, wanted, strict=True):
                    attribute.id = kind
                    attribute.value[: len(words)] = words
                config = LaunchConfig(
                    _three(grid), _three(block), smem, None, attributes, len(wanted)
                )
                _call("cuLaunchKernelEx", ctypes.byref(config), function, pointers, None)
            _call("cuCtxSynchronize")


def _three(size: Sequence[int]) -> Any:
    return (ctypes.c_uint32 * 3)(*size, *[1] * (3 - len(size)))


class _Memory:
    """Copies on the card of CPU tensors, one for all arguments that view the same memory."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack, self._held = stack, {}

    def address(self, tensor: torch.Tensor) -> int:
        if tensor.data_ptr() not in self._held:
            self._held[tensor.data_ptr()] = self._stack.enter_context(_on_card(tensor))
        return self._held[tensor.data_ptr()]


def _value(kind: str, arg: Any, memory: _Memory) -> Any:
    if kind.endswith("*"):
        return ctypes.c_uint64(memory.address(arg))
    if kind.endswith("CUtensorMap"):
        return _encode(arg, memory.address(arg.tensor))
    return _SCALARS[kind.removeprefix("const ")](arg)


@contextlib.contextmanager
def _on_card(tensor: torch.Tensor) -> Iterator[int]:
    """The address of a copy of a contiguous CPU tensor, which is copied back at the end."""
    address, size = ctypes.c_uint64(), tensor.numel() * tensor.element_size()
    _call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(size, 1)))
    try:
        host = ctypes.c_void_p(tensor.data_ptr())
        _call("cuMemcpyHtoD_v2", address, host, ctypes.c_size_t(size))
        yield address.value
        _call("cuMemcpyDtoH_v2", host, address, ctypes.c_size_t(size))
    finally:
        _call("cuMemFree_v2", address)


def _encode(map_: TensorMap, address: int) -> Any:
    """The driver's own CUtensorMap."""
    memory = (ctypes.c_char * 192)()
    encoded = (ctypes.c_char * 128).from_buffer(memory, -ctypes.addressof(memory) % 64)
    rank = len(map_.extents)
    extents = (ctypes.c_uint64 * rank)(*map_.extents)
    strides = (ctypes.c_uint64 * max(rank - 1, 1))(*map_.strides)
    steps = (ctypes.c_uint32 * rank)(*(map_.steps or [1] * rank))
    how = (map_.interleave, map_.swizzle, map_.l2, map_.fill)
    tensor = (encoded, map_.type, rank, ctypes.c_uint64(address), extents, strides)
    if map_.pixels:
        corners = ctypes.c_int * (rank - 2)
        window = (corners(*map_.lower), corners(*map_.upper), map_.channels, map_.pixels)
        _call("cuTensorMapEncodeIm2col", *tensor, *window, steps, *how)
    else:
        box = (ctypes.c_uint32 * rank)(*map_.box)
        _call("cuTensorMapEncodeTiled", *tensor, box, steps, *how)
    return encoded
