"""Normalization ops; importing this package registers them."""

from . import rmsnorm, rmsnorm_unweighted

__all__ = ["rmsnorm", "rmsnorm_unweighted"]
