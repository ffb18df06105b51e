"""Cached entries in pages (spec §12.1): where each part of an entry lies, and how kernels see it.

A pool is ``[pages, page bytes]`` u8. Kernels take it as *views*, one tensor per part of an entry,
``[pages, entries of a page, columns]`` with strides of its own: what they read and write is typed,
and its bounds are proved part by part. Entry `slot` is entry ``slot % E`` of page ``slot // E``;
slot -1 is none.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tileproof.dsl import Dim, Tensor, check, derived, dim, static
from tileproof.kernels.quant import reference
from tileproof.kernels.quant._blocks import FP4_GROUP, FP8_VECTOR, load_code
from tileproof.kernels.quant._fp8 import dequantised
from tileproof.kernels.row_stream import ceildiv

GROUP = 64  # channels of one scale of a KV entry
KEY_GROUP = 128  # of an FP8 key
_WORD = 8  # the scales of a KV entry fill whole words of 8 bytes
_ALIGN = 16  # bytes of a vector access


@dataclass(frozen=True)
class Part:
    """Columns of one element type; `first` and `step` are bytes: of entry 0 in its page, from entry
    to entry."""

    dtype: torch.dtype
    columns: int
    first: int
    step: int


@dataclass(frozen=True)
class Pages:
    """A layout: `entries` of a page, `page` bytes of it, and the parts of an entry."""

    entries: int
    page: int
    parts: tuple[Part, ...]

    def pool(self, pages: int, device: torch.device | str = "cpu") -> torch.Tensor:
        """An empty pool: zeros, [pages, page bytes] u8."""
        return torch.zeros(pages, self.page, dtype=torch.uint8, device=device)

    def views(self, pool: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The parts of `pool` in order, each [pages, entries, columns]; they share its memory.

        Pages may lie further apart than they are long. Raises ContractError for pages of another
        length or type.
        """
        fits = pool.dtype == torch.uint8 and pool.ndim == 2 and pool.shape[1] == self.page
        expected = f"uint8 [pages, {self.page}]"
        check(fits, "pool", got=f"{pool.dtype} {[*pool.shape]}", expected=expected)
        return tuple(self._view(pool, part) for part in self.parts)

    def _view(self, pool: torch.Tensor, part: Part) -> torch.Tensor:
        typed, size = pool.view(part.dtype), part.dtype.itemsize
        first = typed.storage_offset() + part.first // size
        shape = (len(pool), self.entries, part.columns)
        return typed.as_strided(shape, (typed.stride(0), part.step // size, 1), first)


def kv_pages(entries: int, nope: int = 448, rope: int = 64) -> Pages:
    """Entries of attention: `nope` channels in e4m3 with a ue8m0 scale per 64, `rope` in bf16.

    A page is all entries' nope + 2 rope bytes, then all entries' scales (padded to 8 bytes), then
    zeros up to a multiple of nope + 2 rope. By default this is FlashMLA's MODEL1: 576 + 8 bytes an
    entry. Raises ContractError for channels that leave an entry unaligned.
    """
    check(nope > 0 and nope % GROUP == 0, "FP8 channels", got=nope, expected="a multiple of 64")
    check(rope > 0 and rope % 8 == 0, "RoPE channels", got=rope, expected="a multiple of 8")
    check(entries > 0, "entries of a page", got=entries, expected="at least 1")
    data, groups = nope + 2 * rope, nope // GROUP
    scales = ceildiv(groups, _WORD) * _WORD
    return Pages(
        entries,
        ceildiv(entries * (data + scales), data) * data,
        (
            Part(torch.float8_e4m3fn, nope, 0, data),
            Part(torch.bfloat16, rope, nope, data),
            Part(torch.float8_e8m0fnu, groups, entries * data, scales),
        ),
    )


def key_pages(entries: int, channels: int = 128, fp8: bool = False) -> Pages:
    """Keys of the indexer: all entries' codes, then all their ue8m0 scales.

    FP4 has a scale per 32 channels, 68 bytes an entry of 128 channels; FP8 one per 128, 129 bytes.
    Raises ContractError where pages would not be aligned.
    """
    step = _ALIGN if fp8 else FP4_GROUP
    fits = channels > 0 and channels % step == 0
    check(fits, "channels", got=channels, expected=f"a multiple of {step}")
    codes = channels if fp8 else channels // 2
    groups = ceildiv(channels, KEY_GROUP if fp8 else FP4_GROUP)
    page = entries * (codes + groups)
    aligned = entries > 0 and page % _ALIGN == 0
    check(aligned, "bytes of a page", got=page, expected=f"a multiple of {_ALIGN} above 0")
    return Pages(
        entries,
        page,
        (
            Part(torch.float8_e4m3fn if fp8 else torch.uint8, codes, 0, codes),
            Part(torch.float8_e8m0fnu, groups, entries * codes, groups),
        ),
    )


# --- for declarations and device code -------------------------------------------------------------

PAGES = dim(0, 1 << 24)
ENTRIES = static(1, 1024)
MODEL_ENTRIES = 64  # of the pages that a model's kernels are built for
# Elements from page to page, of parts in bytes and in bf16; pages may lie apart.
PITCH = dim(_ALIGN, 1 << 30, multiple=_ALIGN)
HALF_PITCH = dim(_ALIGN // 2, 1 << 29, multiple=_ALIGN // 2)
PAGED_DIMS: dict[str, Dim] = {"Z": PAGES, "E": ENTRIES, "P": PITCH}
KV_DIMS: dict[str, Dim] = {
    "V": static(GROUP, 1024, multiple=GROUP),
    "R": static(8, 256, multiple=8),
    "G": derived(lambda V: V // GROUP),
    "VS": derived(lambda V, R: V + 2 * R),
    "RS": derived(lambda V, R: V // 2 + R),
    "GS": derived(lambda V: ceildiv(V // GROUP, _WORD) * _WORD),
}


def widths(config):
    """(FP8 channels, RoPE channels) of the entries of a HF config."""
    R = config["qk_rope_head_dim"]
    return config["head_dim"] - R, R


def kv_views(make, name: str, letters: Sequence[str] = ("Z", "E", "P", "Q")) -> tuple[Tensor, ...]:
    """Declarations of the three views of a pool of :func:`kv_pages`, their names behind `name`.

    `make` is ``In`` or ``InOut``; `letters` are those of pages, entries of a page, and the pitches
    of bytes and of bf16. An op with them has :data:`KV_DIMS` and these four among its dims.
    """
    Z, E, P, Q = letters
    return (
        make(f"{name}_nope", f"{Z} {E} V", "e4m3", strides=f"{P} VS 1"),
        make(f"{name}_rope", f"{Z} {E} R", "bf16", strides=f"{Q} RS 1"),
        make(f"{name}_scale", f"{Z} {E} G", "ue8m0", strides=f"{P} GS 1"),
    )


def key_views(
    make, name: str, letters: Sequence[str] = ("Z", "E", "P"), fp8: bool = False
) -> tuple[Tensor, ...]:
    """The same for :func:`key_pages`, with dims G of scales and B = D / 2 of bytes, or D in FP8."""
    Z, E, P = letters
    columns, stored = ("D", "e4m3") if fp8 else ("B", "u8")
    return (
        make(f"{name}_codes", f"{Z} {E} {columns}", stored, strides=f"{P} {columns} 1"),
        make(f"{name}_scale", f"{Z} {E} G", "ue8m0", strides=f"{P} G 1"),
    )


def place(slot, E):
    """(page, entry of the page) of a slot that is not -1: in Python, torch and TileLang."""
    return slot // E, slot % E


def kv_reader(T):
    """Macro ``(nope, scale, page, entry, column, row)``: 16 FP8 channels from `column`, as bf16."""
    convert = dequantised(T)

    @T.macro
    def read(nope, scale, page, entry, column, row):
        codes = T.alloc_local((FP8_VECTOR,), "float8_e4m3fn")
        for v in T.vectorized(FP8_VECTOR):
            codes[v] = nope[page, entry, column + v]
        convert(codes, load_code(T, scale[page, entry, column // GROUP]), row)

    return read


# --- in plain torch ------------------------------------------------------------------------------


def _chosen(slot: torch.Tensor, entries: int) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Which of `slot` are entries, and where those lie."""
    there = slot >= 0
    return there, place(slot[there].long(), entries)


def write_kv(
    x: torch.Tensor,
    slot: torch.Tensor,
    nope: torch.Tensor,
    rope: torch.Tensor,
    scale: torch.Tensor,
) -> None:
    """Store the rows of `x` [M, nope + rope] at `slot` [M] (-1: nowhere) of a pool's views.

    The first channels become e4m3 with a scale per 64 (amax floored at 1e-4), the others bf16.
    """
    there, where = _chosen(slot, nope.shape[1])
    q, s = reference.fp8_cast(x[there, : nope.shape[2]], GROUP)
    for part, value in ((nope, q), (scale, s)):
        part.view(torch.uint8)[where] = value.view(torch.uint8)
    rope[where] = x[there, nope.shape[2] :].to(rope.dtype)


def read_kv(
    nope: torch.Tensor, rope: torch.Tensor, scale: torch.Tensor, slot: torch.Tensor
) -> torch.Tensor:
    """The entries at `slot` [...] as bf16 [..., nope + rope]; zeros for -1."""
    there, where = _chosen(slot, nope.shape[1])
    q, s = (part.view(torch.uint8)[where].view(part.dtype) for part in (nope, scale))
    out = rope.new_zeros(*slot.shape, nope.shape[2] + rope.shape[2])
    out[there] = torch.cat([reference.fp8_dequant(q, s, GROUP), rope[where]], -1)
    return out


def write_keys(
    x: torch.Tensor, slot: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor
) -> None:
    """Store the rows of `x` [M, D] at `slot` [M] (-1: nowhere) of a pool's views, FP4 or FP8."""
    there, where = _chosen(slot, codes.shape[1])
    fp4 = codes.dtype == torch.uint8
    q, s = reference.fp4_cast(x[there]) if fp4 else reference.fp8_cast(x[there], KEY_GROUP)
    for part, value in ((codes, q), (scale, s)):
        part.view(torch.uint8)[where] = value.view(torch.uint8)


def dequantised_keys(codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Rows of codes with their scales, FP4 or FP8, as bf16 [M, D]."""
    if codes.dtype == torch.uint8:
        return reference.fp4_dequant(codes, scale)
    return reference.fp8_dequant(codes, scale, KEY_GROUP)


def read_keys(codes: torch.Tensor, scale: torch.Tensor, slot: torch.Tensor) -> torch.Tensor:
    """The keys at `slot` [...] as bf16 [..., D]; zeros for -1."""
    there, where = _chosen(slot, codes.shape[1])
    q, s = (part.view(torch.uint8)[where].view(part.dtype) for part in (codes, scale))
    columns = codes.shape[2] * (2 if codes.dtype == torch.uint8 else 1)
    out = codes.new_zeros(*slot.shape, columns, dtype=torch.bfloat16)
    out[there] = dequantised_keys(q, s)
    return out
