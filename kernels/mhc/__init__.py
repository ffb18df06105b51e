"""Manifold-constrained hyper-connections (spec §4); importing this package registers the ops."""

from . import collapse, head, post, pre, prenorm_gemm, sinkhorn

__all__ = ["collapse", "head", "post", "pre", "prenorm_gemm", "sinkhorn"]
