"""Quantisers (spec §5.3, §6.1); importing this package registers the ops."""

from . import (
    fp4_cast,
    fp4_dequant,
    fp4_rotate_cast,
    fp4_rotate_simulate,
    fp4_simulate,
    fp4_to_fp8,
    fp8_cast,
    fp8_dequant,
    fp8_simulate,
    fp8_tile_cast,
    fp8_tile_dequant,
)

__all__ = [
    "fp4_cast",
    "fp4_dequant",
    "fp4_rotate_cast",
    "fp4_rotate_simulate",
    "fp4_simulate",
    "fp4_to_fp8",
    "fp8_cast",
    "fp8_dequant",
    "fp8_simulate",
    "fp8_tile_cast",
    "fp8_tile_dequant",
]
