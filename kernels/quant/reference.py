"""The quantisers in plain torch, as specified (spec §5.3, §6.1).

A group that holds an infinity or a NaN has the scale NaN (code 255): its codes are NaN in e4m3 and
7 in e2m1, which has none, and all of it comes back as NaN.
"""

import torch
import torch.nn.functional as F

E4M3_MAX, E4M3_FLOOR = 448.0, 1e-4
E2M1_MAX, E2M1_FLOOR = 6.0, 6 * 2.0**-126
E2M1_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
TILE = 128


def _scale(amax: torch.Tensor, largest: float, floor: float) -> torch.Tensor:
    """2^ceil(log2(max(amax, floor) / largest)) in float32, NaN where amax is not finite."""
    mantissa, exponent = torch.frexp(amax.float().clamp(min=floor) / largest)  # mantissa in [.5, 1)
    scale = torch.ldexp(torch.ones_like(mantissa), exponent - (mantissa == 0.5).int())
    return torch.where(amax.isfinite(), scale, torch.nan)


def _groups(x: torch.Tensor, B: int) -> torch.Tensor:
    """[..., K] as [..., G, B] in float32, zeros behind the end of a row."""
    return F.pad(x.float(), (0, -x.shape[-1] % B)).unflatten(-1, (-1, B))


def _rows(groups: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The way back, in the shape of `like`."""
    return groups.flatten(-2)[..., : like.shape[-1]]


def _round_e2m1(x: torch.Tensor) -> torch.Tensor:
    """Nearest codes 0..15, ties to the even code, saturating; NaN becomes 7."""
    values = torch.tensor(E2M1_VALUES)
    halfway = (values[1:] + values[:-1]) / 2
    below = torch.bucketize(x.abs(), halfway)  # a tie goes to the lower code
    above = torch.bucketize(x.abs(), halfway, right=True)  # to the upper
    code = torch.where(below % 2 == 0, below, above)
    return torch.where(x.isnan(), 7, code + 8 * x.signbit().int()).to(torch.uint8)


def e2m1_values(packed: torch.Tensor) -> torch.Tensor:
    """[..., K / 2] bytes of two codes, the even column's in the low half, as [..., K] float32."""
    codes = torch.stack((packed & 15, packed >> 4), -1).flatten(-2)
    return torch.tensor((*E2M1_VALUES, *(-v for v in E2M1_VALUES)))[codes.long()]


def _fp8_values(q: torch.Tensor, s: torch.Tensor, B: int) -> torch.Tensor:
    return _rows(_groups(q, B) * s.float()[..., None], q)


def _fp4_values(q: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    values = e2m1_values(q)
    return _rows(_groups(values, 32) * s.float()[..., None], values)


def fp8_cast(x: torch.Tensor, B: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scales of 1×B groups.

    Args:
        x: [M, K] bf16 or f32.
        B: elements of a group; the last of a row may have fewer.

    Returns:
        [M, K] e4m3 and [M, ceil(K / B)] ue8m0.
    """
    groups = _groups(x, B)
    scale = _scale(groups.abs().amax(-1), E4M3_MAX, E4M3_FLOOR)
    codes = (groups / scale[..., None]).clamp(-E4M3_MAX, E4M3_MAX)
    codes = torch.where(codes.isnan(), torch.nan, codes)  # NaN without a sign
    return _rows(codes, x).to(torch.float8_e4m3fn), scale.to(torch.float8_e8m0fnu)


def fp8_dequant(q: torch.Tensor, s: torch.Tensor, B: int) -> torch.Tensor:
    """q * s in float32, as bf16; shapes as in :func:`fp8_cast`."""
    return _fp8_values(q, s, B).bfloat16()


def fp8_simulate(x: torch.Tensor, B: int) -> torch.Tensor:
    """:func:`fp8_cast` and back, in the type of `x`."""
    return _fp8_values(*fp8_cast(x, B), B).to(x.dtype)


def fp8_tile_cast(w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scales of N×128 tiles.

    Args:
        w: [M, N, K] bf16 or f32: M strips of N <= 128 rows.

    Returns:
        [M, N, K] e4m3 and [M, ceil(K / 128)] ue8m0.
    """
    N, K = w.shape[1:]
    tiles = F.pad(w, (0, -K % TILE)).unflatten(-1, (-1, TILE)).transpose(1, 2)
    strips = tiles.flatten(1)  # tile by tile
    codes, scale = fp8_cast(strips, N * TILE)
    return codes.unflatten(-1, (-1, N, TILE)).transpose(1, 2).flatten(2)[..., :K], scale


def fp8_tile_dequant(q: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    """q * s in float32, as bf16; shapes as in :func:`fp8_tile_cast`."""
    return _rows(_groups(q, TILE) * s.float()[:, None, :, None], q).bfloat16()


def fp4_cast(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scales of 1×32 groups.

    Args:
        x: [M, K] bf16 or f32.

    Returns:
        [M, K / 2] u8, the even column in the low half, and [M, K / 32] ue8m0.
    """
    groups = _groups(x, 32)
    scale = _scale(groups.abs().amax(-1), E2M1_MAX, E2M1_FLOOR)
    codes = _round_e2m1(_rows(groups / scale[..., None], x))
    return codes[..., 0::2] | codes[..., 1::2] << 4, scale.to(torch.float8_e8m0fnu)


def fp4_dequant(q: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    """q * s in float32, as bf16; shapes as in :func:`fp4_cast`."""
    return _fp4_values(q, s).bfloat16()


def fp4_simulate(x: torch.Tensor) -> torch.Tensor:
    """:func:`fp4_cast` and back, in the type of `x`."""
    return _fp4_values(*fp4_cast(x)).to(x.dtype)


def rotate(x: torch.Tensor) -> torch.Tensor:
    """H x / sqrt(128) for every 128 elements, H Sylvester's matrix in natural order.

    Sums and differences in float32 of elements 1, 2, 4 … 64 apart; one rounding to x's type.
    """
    wave = x.float().unflatten(-1, (-1, 128))
    for apart in (1, 2, 4, 8, 16, 32, 64):
        low, high = wave.unflatten(-1, (-1, 2, apart)).unbind(-2)
        wave = torch.stack((low + high, low - high), -2).flatten(-3)
    return (wave * torch.tensor(128**-0.5)).flatten(-2).to(x.dtype)


def fp4_rotate_cast(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`fp4_cast` of the rotated [M, K] bf16 `x`, K a multiple of 128."""
    return fp4_cast(rotate(x))


def fp4_rotate_simulate(x: torch.Tensor) -> torch.Tensor:
    """:func:`fp4_simulate` of the rotated [M, K] bf16 `x`, K a multiple of 128."""
    return fp4_simulate(rotate(x))


def fp4_to_fp8(p: torch.Tensor, s: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """e2m1 with scales per 1×32 as e4m3 with scales t = max(s) / 2^6 per N×128.

    Args:
        p: [M, N, K / 2] u8 and
        s: [M, N, K / 32] ue8m0: M strips of N <= 128 rows, as from :func:`fp4_cast`.

    Returns:
        [M, N, K] e4m3; [M, ceil(K / 128)] ue8m0; [M, ceil(K / 128)] u8, 1 where no value of the
        tile changed. That is so for any codes if max(s) / min(s) <= 2^14.
    """
    values = e2m1_values(p)
    source = s.view(torch.uint8).int()
    tiles = _groups(source, 4).int()  # [M, N, G, 4]
    largest = tiles.amax((1, 3))
    t = torch.where(largest == 255, 255, (largest - 6).clamp(min=0))
    k = (tiles - t[:, None, :, None]).clamp(min=-126)
    factor = torch.ldexp(torch.ones_like(k, dtype=torch.float32), k)
    factor = factor.where(t[:, None, :, None] != 255, torch.nan)
    factor = factor.flatten(-2)[..., : s.shape[-1], None]
    wanted = _rows(_groups(values, 32) * factor, values)
    q = wanted.to(torch.float8_e4m3fn)
    same = _groups((q.float() == wanted).float(), TILE)
    inside = _groups(torch.ones_like(wanted), TILE)
    exact = (same == inside).all(-1).all(1)
    return q, t.to(torch.uint8).view(torch.float8_e8m0fnu), exact.to(torch.uint8)
