"""Matrix products with weights in plain torch, as specified (spec §6.3)."""

import torch

from tileproof.kernels.quant.reference import e2m1_values

_KINDS = {"bf16": torch.bfloat16, "f32": torch.float32}
_GROUP = 128  # columns of a scale


def dense(x: torch.Tensor, w: torch.Tensor, out: str) -> torch.Tensor:
    """x W^T, summed in float32 (in float64 for float64).

    Args:
        x: [M, K].
        w: [N, K].
        out: type of the result, ``"bf16"`` or ``"f32"``; float64 stays.

    Returns:
        [M, N].
    """
    if x.dtype == torch.float64:
        return x @ w.double().mT
    return (x.float() @ w.float().mT).to(_KINDS[out])


def grouped(x: torch.Tensor, w: torch.Tensor, out: str) -> torch.Tensor:
    """x_g W_g^T for every group: a block-diagonal weight.

    Args:
        x: [M, G, K].
        w: [G, N, K].
        out: as in :func:`dense`.

    Returns:
        [M, G, N].
    """
    return torch.stack([dense(x[:, g], w[g], out) for g in range(len(w))], 1)


def experts(x: torch.Tensor, expert: torch.Tensor, w: torch.Tensor, out: str) -> torch.Tensor:
    """x_q W_e^T of tiles of rows, e = expert_q.

    Args:
        x: [Q, R, K].
        expert: [Q] i32; -1 is none.
        w: [E, N, K].
        out: as in :func:`dense`.

    Returns:
        [Q, R, N], zeros where there is no expert.
    """
    kind = x.dtype if x.dtype == torch.float64 else _KINDS[out]
    y = torch.zeros(*x.shape[:2], w.shape[1], dtype=kind)
    for q, e in enumerate(expert.tolist()):
        if e >= 0:
            y[q] = dense(x[q], w[e], out)
    return y


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return a.float() @ b.float().mT


def fp8(x, xs, w, ws, out: str, product=_product) -> torch.Tensor:
    """x W^T of scaled codes: ``y += sum * (xs * ws)`` in float32 for each 128 columns, in order.

    Args:
        x: [M, K] e4m3 and
        xs: [M, G] ue8m0, a scale per 1×128, G = ceil(K / 128).
        w: [N, K] e4m3 and
        ws: [ceil(N / 128), G] ue8m0, a scale per 128×128.
        out: type of the result, ``"bf16"`` or ``"f32"``.
        product: sums within 128 columns, [M, 128] and [N, 128] to [M, N] float32; their order is
            the device's.

    Returns:
        [M, N]. The product of the scales, the scaled sum and the addition round separately.
    """
    y = torch.zeros(len(x), len(w))
    columns = ws.float().repeat_interleave(_GROUP, 0)[: len(w)]
    for g, (a, b) in enumerate(zip(x.split(_GROUP, 1), w.split(_GROUP, 1), strict=True)):
        y += product(a, b) * (xs[:, g, None].float() * columns[:, g])
    return y.to(_KINDS[out])


def fp4(x, xs, w, ws, B: int, out: str, product=_product, once=False) -> torch.Tensor:
    """x W^T of scaled codes: ``y += (sum * xs) * ws`` in float32 for each 32 columns, in order.

    Args:
        x: [M, K] e4m3 and
        xs: [M, ceil(K / B)] ue8m0, a scale per 1×B, B = 32 or 128.
        w: [N, K / 2] u8, two e2m1 a byte, the even column in the low half, and
        ws: [N, K / 32] ue8m0, a scale per 1×32.
        out, product: as in :func:`fp8`.
        once: both products round once, as the instructions of sm_100a are understood; the same
            where ``sum * xs`` stays a normal float32.

    Returns:
        [M, N]. Both products and the addition round separately.
    """
    y = torch.zeros(len(x), len(w))
    values = e2m1_values(w)
    kind = torch.float64 if once else torch.float32
    for g, (a, b) in enumerate(zip(x.split(32, 1), values.split(32, 1), strict=True)):
        scales = xs[:, g * 32 // B, None].to(kind), ws[:, g].to(kind)
        y += (product(a, b) * scales[0] * scales[1]).float()
    return y.to(_KINDS[out])


def fp4_experts(x, xs, expert, w, ws, B: int, out: str, product=_product) -> torch.Tensor:
    """:func:`fp4` of each tile of rows with the weight of its expert; zeros where that is -1.

    Args:
        x: [Q, R, K] e4m3, Q tiles of R rows, and
        xs: [Q, R, ceil(K / B)] ue8m0.
        expert: [Q] i32, 0..E-1 or -1.
        w: [E, N, K / 2] u8 and
        ws: [E, N, K / 32] ue8m0.
        B, out, product: as in :func:`fp4`.

    Returns:
        [Q, R, N].
    """
    y = torch.zeros(*x.shape[:2], w.shape[1], dtype=_KINDS[out])
    for q, e in enumerate(expert.tolist()):
        if e >= 0:
            y[q] = fp4(x[q], xs[q], w[e], ws[e], B, out, product)
    return y
