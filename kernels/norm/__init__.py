"""Normalization ops; importing this package registers them."""

from . import kv_fp8, kv_row, rmsnorm, rmsnorm_fp8, rmsnorm_unweighted

__all__ = ["kv_fp8", "kv_row", "rmsnorm", "rmsnorm_fp8", "rmsnorm_unweighted"]
