"""The KV compressor (spec §2); importing this package registers the ops."""

from . import keep, pool, pool_fp4, pool_fp8, pool_row

__all__ = ["keep", "pool", "pool_fp4", "pool_fp8", "pool_row"]
