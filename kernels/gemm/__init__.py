"""Matrix products with weights (spec §6.3); importing this package registers the ops."""

from . import dense, experts, fp4, fp4_experts, fp8, grouped

__all__ = ["dense", "experts", "fp4", "fp4_experts", "fp8", "grouped"]
