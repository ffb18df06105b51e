"""Value equivalence: the source program and what TileLang made of it, run on the same values.

Values are residues modulo a prime, so that sums are exact in any order and a wrong factor, index or
operand shows in every bit; functions that are no polynomials are random functions of residues. Two
programs that agree on random residues compute, up to a chance of about one in 2^31 for each
element, the same polynomials of their inputs and of those functions. The order of a sum and the
rounding of floating point are not compared.

``residues.py`` and ``arithmetic.py`` hold the numbers, ``memory.py`` the cells, ``machine.py`` what
both levels share, ``tiles.py`` the tile operations of the source. ``device.py`` has the threads of
the lowered program, with ``collectives.py``, ``fragments.py``, ``wgmma.py`` and ``tma.py`` for its
calls, and ``schedule.py`` decides who runs ahead. ``equivalence.py`` compares the two and
``prove.py`` reports it. No reasoning is shared with the prover.
"""

from .equivalence import Difference, Reference, parting
from .memory import FaultError, UnmodelledError
from .prove import compare_values
from .schedule import EVERY, TOGETHER, Schedule

__all__ = [
    "EVERY",
    "TOGETHER",
    "Difference",
    "FaultError",
    "Reference",
    "Schedule",
    "UnmodelledError",
    "compare_values",
    "parting",
]
