"""Sanitize sessions: launches whose races, uninitialised reads and errors become findings."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from .device import library


@dataclass(frozen=True)
class Place:
    """A block, the thread of it (None: all of it) and the instruction, an offset in the module."""

    block: tuple[int, int, int]
    thread: tuple[int, int, int] | None
    site: int


@dataclass(frozen=True)
class RawFinding:
    """A finding as the virtual GPU reports it; `count` equal ones are one finding."""

    kind: str
    kernel: str
    words: str
    at: Place
    other: str
    other_at: Place | None
    count: int


class _Finding(ctypes.Structure):
    """`PlainFinding` of csrc/sanitizer.cpp."""

    _fields_ = [
        *((name, ctypes.c_char_p) for name in ("kind", "kernel", "words", "other")),
        ("block", ctypes.c_uint32 * 3),
        ("thread", ctypes.c_uint32 * 3),
        ("site", ctypes.c_uint32),
        ("other_block", ctypes.c_uint32 * 3),
        ("other_thread", ctypes.c_uint32 * 3),
        ("other_site", ctypes.c_uint32),
        ("by_thread", ctypes.c_uint32),
        ("has_other", ctypes.c_uint32),
        ("other_by_thread", ctypes.c_uint32),
        ("count", ctypes.c_uint64),
    ]


class Session:
    """One sanitized call: guarded copies of its arguments, and what its launches did wrong.

    limit: findings kept; `dropped` counts the rest.
    """

    def __init__(self, limit: int = 100):
        self._library = library()
        self._handle = ctypes.c_void_p(self._library.vgpu_sanitizer_new(limit))
        self._memory: list[tuple[int, int]] = []

    def argument(self, tensor: torch.Tensor, *, initialised: bool) -> torch.Tensor:
        """A copy of a CPU tensor, strides and all, with 16 GiB of nothing on either side.

        initialised: False for an output: bytes a kernel reads before one wrote them are a finding.
        """
        if not tensor.numel():
            return tensor.clone()
        elements = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
        size = elements * tensor.element_size()
        memory = self._library.vgpu_guarded_new(size)
        if not memory:
            raise MemoryError(f"no memory for a guarded tensor of {size} bytes")
        self._memory.append((memory, size))
        self._library.vgpu_sanitizer_argument(self._handle, memory, size, initialised)
        raw = (ctypes.c_char * size).from_address(memory)
        storage = torch.frombuffer(raw, dtype=tensor.dtype)
        storage.copy_(tensor.as_strided((elements,), (1,)))
        return storage.as_strided(tensor.shape, tensor.stride())

    def unwritten(self, tensor: torch.Tensor) -> int | None:
        """The first byte of an uninitialised argument that no launch has written, None if all."""
        at = self._library.vgpu_sanitizer_unwritten(self._handle, tensor.data_ptr())
        return None if at < 0 else int(at)

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Launches of checked builds within the block, on this thread, report to this session."""
        self._library.vgpu_sanitizer_use(self._handle)
        try:
            yield
        finally:
            self._library.vgpu_sanitizer_use(None)

    @property
    def dropped(self) -> int:
        return int(self._library.vgpu_sanitizer_dropped(self._handle))

    def findings(self) -> list[RawFinding]:
        found = []
        plain = _Finding()
        for index in range(self._library.vgpu_sanitizer_count(self._handle)):
            self._library.vgpu_sanitizer_finding(self._handle, index, ctypes.byref(plain))
            thread = _triple(plain.thread) if plain.by_thread else None
            other_at = None
            if plain.has_other:
                other_thread = _triple(plain.other_thread) if plain.other_by_thread else None
                other_at = Place(_triple(plain.other_block), other_thread, plain.other_site)
            kind, kernel, words, other = (
                text.decode() for text in (plain.kind, plain.kernel, plain.words, plain.other)
            )
            at = Place(_triple(plain.block), thread, plain.site)
            found.append(RawFinding(kind, kernel, words, at, other, other_at, plain.count))
        return found

    def close(self) -> None:
        """Gives the memory back; tensors made by `argument` must not be used any more."""
        for memory, size in self._memory:
            self._library.vgpu_guarded_delete(memory, size)
        self._memory.clear()
        if self._handle:
            self._library.vgpu_sanitizer_delete(self._handle)
            self._handle = ctypes.c_void_p()


def _triple(values: ctypes.Array[ctypes.c_uint32]) -> tuple[int, int, int]:
    x, y, z = values
    return x, y, z
