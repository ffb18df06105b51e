"""Memory whose bytes know which element was stored at them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from .residues import P, symbol


class UnmodelledError(Exception):
    """A construct this execution does not know; its text is the name reported."""


class FaultError(Exception):
    """What a correct program never does: an access outside, threads that part at a barrier."""


@dataclass(frozen=True)
class Element:
    """A scalar type: `kind` is "float", "int", "bool"; `code` tells types of one width apart."""

    name: str
    kind: str
    bits: int

    @property
    def bytes(self) -> int:
        if self.bits % 8:
            raise UnmodelledError(f"elements of {self.bits} bits ({self.name})")
        return self.bits // 8

    @property
    def code(self) -> int:
        return 1 + _CODES.index((self.kind, self.name if self.kind == "float" else self.bits))


_FLOATS = (
    *("float16", "bfloat16", "float32", "float64", "tfloat32"),
    *("float8_e4m3fn", "float8_e5m2", "float8_e4m3", "float8_e8m0fnu", "float4_e2m1fn"),
)
_CODES: list[tuple[str, Any]] = [
    *(("float", name) for name in _FLOATS),
    *(("int", bits) for bits in (8, 16, 32, 64)),
    ("bool", 8),
]


@lru_cache(maxsize=256)
def element(dtype: str) -> Element:
    """The scalar type of a TIR dtype, of its lanes if it is a vector."""
    scalar = re.sub(r"x\d+$", "", dtype)
    if scalar == "bool":
        return Element(scalar, "bool", 8)
    match = re.fullmatch(r"u?int(\d+)", scalar)
    if match:
        return Element(scalar, "int", int(match[1]))
    if scalar not in _FLOATS:
        raise UnmodelledError(f"type {scalar}")
    digits = re.search(r"\d+", scalar)
    return Element(scalar, "float", int(digits[0]) if digits else 0)


def width(dtype: str) -> int:
    """How many scalars an element of a TIR dtype holds."""
    match = re.search(r"x(\d+)$", dtype)
    return int(match[1]) if match else 1


_INSIDE = 255  # code of the bytes of an element but its first


class Memory:
    """`owners` pieces of `size` bytes.

    What was not written as what it is read as reads as a value of `salt` and its place. `reread`
    tells whether bits of another type were read: a difference that follows may be none. `seen` is
    what asynchronous units see of shared memory, which threads change only by a fence.
    """

    seen: Memory | None = None

    def __init__(self, name: str, owners: int, size: int, salt: str) -> None:
        self.name, self.size, self.salt, self.reread = name, size, salt, False
        self.value = np.zeros((owners, size), np.int64)
        self.code = np.zeros((owners, size), np.uint8)

    @property
    def async_view(self) -> Memory:
        """`seen`, of shared memory."""
        if self.seen is None:
            raise UnmodelledError(f"asynchronous accesses to {self.name}")
        return self.seen

    def repeated(self, count: int, rows: Any = slice(None)) -> Memory:
        """Memory of `count` owners in the place of each, of those in `rows`."""
        copy = Memory(self.name, 0, self.size, self.salt)
        copy.value = np.repeat(self.value[rows], count, axis=0)
        copy.code = np.repeat(self.code[rows], count, axis=0)
        return copy

    def _inside(self, at: Any, width: int, active: Any) -> Any:
        at = np.where(active, at, 0)
        outside = (at < 0) | (at + width > self.size)
        if outside.any() and (outside & active).any():
            worst = int(at[outside & active][0])
            raise FaultError(f"{self.name}: byte {worst} of {self.size}")
        return at

    def load(self, owner: Any, at: Any, kind: Element, active: Any) -> Any:
        """Elements of `kind` at bytes `at`, wherever `active`; 0 elsewhere."""
        at = self._inside(at, kind.bytes, active)
        if not self.size:
            return np.zeros_like(at)
        whole = self.code[owner, at] == kind.code
        for byte in range(1, kind.bytes):
            whole &= self.code[owner, np.minimum(at + byte, self.size - 1)] == _INSIDE
        value = np.where(active, self.value[owner, at], 0)
        if (whole | ~active).all():
            return value
        self.reread |= bool((active & ~whole & (self.code[owner, at] != 0)).any())
        nothing = symbol(f"nothing {self.salt}", np.broadcast_to(owner, at.shape), at)
        return np.where(whole | ~active, value, nothing)

    def store(self, owner: Any, at: Any, kind: Element, value: Any, active: Any) -> None:
        at = self._inside(at, kind.bytes, active)
        if not active.all():
            owner, at, value, active = np.broadcast_arrays(owner, at, value, active)
            owner, at, value = owner[active], at[active], value[active]
        # Last one wins, as if the lanes took turns.
        self.value[owner, at] = value
        for byte in range(1, kind.bytes):
            self.code[owner, at + byte] = _INSIDE
        self.code[owner, at] = kind.code

    def update(
        self, owner: Any, at: Any, kind: Element, value: Any, active: Any, operation: np.ufunc
    ) -> None:
        """Updates elements, every lane in its turn: integers, or (sums alone) residues modulo P."""
        at = self._inside(at, kind.bytes, active)
        owner, at, value, active = np.broadcast_arrays(owner, at, value, active)
        owner, at, value = owner[active], at[active], value[active]
        places = (owner, at)
        present = self.load(owner, at, kind, np.ones(at.shape, bool))
        self.store(owner, at, kind, present, np.ones(at.shape, bool))
        operation.at(self.value, places, value)
        low = -(1 << (kind.bits - 1)) if kind.name.startswith("int") else 0
        size = P if kind.kind == "float" else 1 << kind.bits
        if size < 1 << 63:
            self.value[places] = (self.value[places] - low) % size + low

    def move(self, owner: Any, at: Any, source: Memory, source_at: Any, kind: Element) -> None:
        """Elements of `kind` from `source_at`, (owner, byte), to bytes `at`, whatever they are."""
        of, start = source_at
        at = self._inside(at, kind.bytes, np.ones(at.shape, bool))
        start = source._inside(start, kind.bytes, np.ones(start.shape, bool))
        for byte in range(kind.bytes):
            self.value[owner, at + byte] = source.value[of, start + byte]
            self.code[owner, at + byte] = source.code[of, start + byte]
