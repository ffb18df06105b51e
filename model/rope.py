"""How fast RoPE turns each pair of channels (spec §3.2): plainly, or slowed down by YaRN."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch


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
