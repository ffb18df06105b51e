"""Matrix products with weights (spec §6.3); importing this package registers the ops."""

from . import dense, grouped

__all__ = ["dense", "grouped"]
