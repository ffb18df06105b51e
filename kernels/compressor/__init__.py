"""The KV compressor (spec §2); importing this package registers the ops."""

from . import pool

__all__ = ["pool"]
