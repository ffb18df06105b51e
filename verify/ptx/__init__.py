"""The second opinion: nvcc's PTX, executed symbolically in bit-vectors.

Nothing here is shared with the route through TileLang's IR but the contract and the reports.
"""

from .prove import prove_ptx, prove_text

__all__ = ["prove_ptx", "prove_text"]
