"""Value equivalence: the source program and what TileLang made of it, run on the same values.

Values are residues modulo a prime, so that sums are exact in any order and a wrong factor, index or
operand shows in every bit; functions that are no polynomials are random functions of residues. Two
programs that agree on random residues compute, up to a chance of about one in 2^31 for each
element, the same polynomials of their inputs and of those functions. The order of a sum and the
rounding of floating point are not compared.

``residues.py`` holds the arithmetic, ``memory.py`` the cells, ``machine.py`` what both levels
share, ``tiles.py`` the tile operations of the source, ``device.py`` the threads of the lowered
program; ``equivalence.py`` compares them and ``prove.py`` reports it. No reasoning is shared with
the prover.
"""

from .equivalence import Difference, Reference
from .memory import FaultError, UnmodelledError
from .prove import compare_values

__all__ = ["Difference", "FaultError", "Reference", "UnmodelledError", "compare_values"]
