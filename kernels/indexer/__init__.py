"""The lightning indexer (spec §3.1); importing this package registers the ops."""

from . import score, topk

__all__ = ["score", "topk"]
