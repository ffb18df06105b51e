"""Manifold-constrained hyper-connections (spec §4); importing this package registers the ops."""

from . import collapse, head, post, post_prenorm_gemm, pre, prenorm_gemm, sinkhorn

__all__ = ["collapse", "head", "post", "post_prenorm_gemm", "pre", "prenorm_gemm", "sinkhorn"]
