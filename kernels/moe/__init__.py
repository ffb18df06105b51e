"""Mixture of experts (spec §5); importing this package registers the ops."""

from . import given_gate, hash_gate, permute, source, topk_gate

__all__ = ["given_gate", "hash_gate", "permute", "source", "topk_gate"]
