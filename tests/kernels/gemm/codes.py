"""Scaled codes as operands of products, and the order of sums that the virtual GPU defines."""

import torch

E4M3, UE8M0 = torch.float8_e4m3fn, torch.float8_e8m0fnu


def generator(seed):
    return torch.Generator().manual_seed(seed % 2**31)


def e4m3(shape, draw, scale=16.0):
    """Codes of normal numbers, subnormal ones among them, none NaN."""
    x = torch.randn(shape, generator=draw) * scale
    x[torch.rand(shape, generator=draw) < 0.1] *= 2.0**-12
    return x.clamp(-448, 448).to(E4M3)


def ue8m0(shape, draw, lo=110, hi=135):
    """Scales of codes lo..hi."""
    return torch.randint(lo, hi + 1, shape, generator=draw, dtype=torch.uint8).view(UE8M0)


def ordered(a, b):
    """[M, N] float32: products of [M, K] and [N, K] added one by one by ascending column.

    The products of e4m3 and e2m1 are exact in float32, so each step rounds once: mma.sync as the
    virtual GPU defines it.
    """
    total = torch.zeros(len(a), len(b))
    for k in range(a.shape[1]):
        total += a[:, k, None].float() * b[:, k].float()
    return total


def truncated(a, b, fraction=13, columns=32):
    """[M, N] float32 likewise, as the FP8 instructions of sm_89 and sm_90a were measured to add:
    `columns` products and the sum before them, all cut off to `fraction` bits below the leading one
    of the largest.
    """
    total = torch.zeros(len(a), len(b), dtype=torch.float64)
    for x, w in zip(a.double().split(columns, 1), b.double().split(columns, 1), strict=True):
        terms = torch.cat([x[:, None, :] * w[None, :, :], total[..., None]], 2)
        leading = terms.abs().amax(2, keepdim=True).log2().floor().clamp(min=-126)
        unit = torch.exp2(leading - fraction)
        total = ((terms / unit).trunc() * unit).sum(2)
    return total.float()


def e2m1(shape, draw):
    """[N, K] of any codes, two a byte."""
    return torch.randint(0, 256, (*shape[:-1], shape[-1] // 2), generator=draw, dtype=torch.uint8)
