"""Rotary position embedding as ops of its own: the indexer's queries (spec §3.1)."""

from . import rotate, rotate_fp4

__all__ = ["rotate", "rotate_fp4"]
