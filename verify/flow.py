"""Abstract data: whose row went into a value, and which expression it is."""

from __future__ import annotations

import zlib
from functools import cache
from typing import Any, NamedTuple

import numpy as np

NONE, MIXED, UNSET = -1, -2, -3  # labels: of no row, of several, of memory nobody wrote
_COMMUTE = {"Add", "Mul", "Max", "Min", "tl.add2", "tl.mul2", "tirx.tvm_add"}


class UnfollowedError(Exception):
    """A construct whose flow of data is not followed; says which."""


class Flow(NamedTuple):
    """Abstract data of every thread (and lane of a vector): labels and words."""

    label: Any
    word: Any


def mix(*parts: Any) -> Any:
    """A word for an ordered list of words."""
    with np.errstate(over="ignore"):
        total: Any = np.uint64(0x9E3779B97F4A7C15)
        for part in parts:
            x = total * np.uint64(0xD1342543DE82EF95) + np.asarray(part).astype(np.uint64)
            x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            total = x ^ (x >> np.uint64(31))
        return total


@cache
def name_word(name: str) -> Any:
    """A word for a name."""
    return np.uint64(zlib.crc32(name.encode()) + 1)


def join(a: Any, b: Any) -> Any:
    """The label of what two labels flow into."""
    if np.array_equal(a, b) or (np.ndim(b) == 0 and b == NONE):
        return a
    several = np.minimum(np.minimum(a, b), MIXED)
    return np.where(a == NONE, b, np.where((a == b) | (b == NONE), a, several))


def combine(name: str, parts: list[Flow]) -> Flow:
    """A function of data; sums and products of two do not care which comes first."""
    if any(np.ndim(v) == 2 for part in parts for v in part):  # a scalar is alike in every lane
        parts = [Flow(*(v[:, None] if np.ndim(v) == 1 else v for v in part)) for part in parts]
    label = parts[0].label if parts else np.int64(NONE)
    for part in parts[1:]:
        label = join(label, part.label)
    words = [p.word for p in parts]
    if name in _COMMUTE and len(words) == 2:
        with np.errstate(over="ignore"):
            words = [words[0] + words[1], words[0] ^ words[1]]
    return Flow(label, mix(name_word(name), *words))


class Memory:
    """One buffer per owner (thread or block) as labels and words of its units of `unit` bytes."""

    def __init__(self, owners: int, size: int, unit: int) -> None:
        self.unit = unit
        self.label = np.full((owners, -(-size // unit)), UNSET, np.int64)
        self.word = np.zeros((owners, -(-size // unit)), np.uint64)

    def _inside(self, at: Any, width: int) -> Any:
        last = self.word.shape[1] - width // self.unit
        if np.size(at) and (np.min(at) < 0 or np.max(at) > last):
            raise UnfollowedError("an access outside its buffer")
        return at

    def read(self, owner: Any, byte: Any, width: int) -> Flow:
        at = self._inside(byte // self.unit, width)
        label, word = self.label[owner, at], self.word[owner, at]
        for i in range(1, width // self.unit):  # its other parts may come from elsewhere
            more = self.word[owner, at + i]
            label = join(label, self.label[owner, at + i])
            if (more != word).any():
                word = np.where(more == word, word, mix(word, more))
        return Flow(label, word)

    def write(self, owner: Any, byte: Any, width: int, flow: Flow, mask: Any) -> None:
        shape = np.broadcast_shapes(np.shape(owner), np.shape(byte), np.shape(mask))
        keep = np.broadcast_to(mask, shape)
        owner, at = np.broadcast_to(owner, shape), np.broadcast_to(byte // self.unit, shape)
        label, word = (np.broadcast_to(v, shape) for v in flow)
        if not keep.all():
            owner, at, label, word = (v[keep] for v in (owner, at, label, word))
        self._inside(at, width)
        for i in range(width // self.unit):
            self.label[owner, at + i] = label
            self.word[owner, at + i] = word
