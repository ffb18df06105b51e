"""Mixture of experts (spec §5); importing this package registers the ops."""

from . import (
    combine,
    dispatch,
    dispatch_fp8,
    given_gate,
    hash_gate,
    mega,
    permute,
    source,
    swiglu,
    swiglu_fp8,
    topk_gate,
)

__all__ = [
    "combine",
    "dispatch",
    "dispatch_fp8",
    "given_gate",
    "hash_gate",
    "mega",
    "permute",
    "source",
    "swiglu",
    "swiglu_fp8",
    "topk_gate",
]
