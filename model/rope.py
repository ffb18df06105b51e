"""cos and sin of every position (spec §3.2): plain RoPE, and YaRN's where layers compress."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import DeepseekV4Config


def frequencies(parameters: Mapping[str, Any], channels: int) -> torch.Tensor:
    """Radians a position, [channels / 2] f32: ``theta^(-2 k / channels)``.

    With ``rope_type`` ``"yarn"`` slow pairs turn `factor` times slower. Those that turn more than
    `beta_fast` times within the original context keep their frequency, those with fewer turns than
    `beta_slow` are slowed, and a ramp joins the two. Magnitudes stay 1.
    """
    theta = parameters["rope_theta"]
    plain = 1.0 / theta ** (torch.arange(0, channels, 2, dtype=torch.int64).float() / channels)
    if parameters.get("rope_type", "default") != "yarn":
        return plain

    def pair(turns: float) -> float:
        wave = parameters["original_max_position_embeddings"] / (turns * 2 * math.pi)
        return channels * math.log(wave) / (2 * math.log(theta))

    low = max(math.floor(pair(parameters["beta_fast"])), 0)
    high = min(math.ceil(pair(parameters["beta_slow"])), channels - 1)
    ramp = (torch.arange(channels // 2).float() - low) / max(high - low, 0.001)
    kept = 1 - ramp.clamp(0, 1)
    return plain / parameters["factor"] * (1 - kept) + plain * kept


def tables(
    config: DeepseekV4Config, compressed: bool, length: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin [length, qk_rope_head_dim / 2] f32 of positions 0..length-1.

    Layers without compression have a table of their own; in the others window, queries, entries and
    the indexer share one.
    """
    parameters = config.rope_parameters["compress" if compressed else "main"]
    turned = frequencies(parameters, config.qk_rope_head_dim)
    angle = torch.arange(length).float()[:, None] * turned
    return angle.cos(), angle.sin()
