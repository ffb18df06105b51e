"""Manifold-constrained hyper-connections (spec §4); importing this package registers the ops."""

from . import collapse, post, prenorm_gemm

__all__ = ["collapse", "post", "prenorm_gemm"]
