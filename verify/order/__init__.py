"""Order in kernels whose threads play different roles: mbarriers, TMA, wgmma, named barriers.

Every thread of one block is followed from its first statement to its last (``trace.py``), by
numbers, with sizes and block indices unknown; from what they do to barriers follows what comes
before what in every run (``graph.py``), and from that which accesses may meet (``conflicts.py``).
"""

from .analysis import Order, analyse

__all__ = ["Order", "analyse"]
