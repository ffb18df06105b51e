"""Core attention (spec §3.2); importing this package registers the ops."""

from . import sparse

__all__ = ["sparse"]
