"""Core attention (spec §3.2); importing this package registers the ops."""

from . import out_rope, paged, paged_cluster, q_prologue, sparse

__all__ = ["out_rope", "paged", "paged_cluster", "q_prologue", "sparse"]
