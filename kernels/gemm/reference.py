"""Matrix products with weights in plain torch, as specified (spec §6.3)."""

import torch

_KINDS = {"bf16": torch.bfloat16, "f32": torch.float32}


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
