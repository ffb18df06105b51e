"""The lightning indexer (spec §3.1); importing this package registers the ops."""

from . import score, score_fp4, score_fp8, slots, topk

__all__ = ["score", "score_fp4", "score_fp8", "slots", "topk"]
