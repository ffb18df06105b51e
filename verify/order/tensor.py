"""What orders accesses of tensor memory (PTX ISA, "Memory Consistency Model for 5th generation of
TensorCore operations").

Multiplies and copies of scales go on after they were issued, until a phase that a commit behind
them arrives at; loads and stores are waited for where they are made. All are asynchronous to
barriers: what a thread knows to be over, its next access comes after only behind a
``tcgen05.fence::after_thread_sync``, and loads and stores are over for other threads only from a
``::before_thread_sync`` on. A commit is such a fence by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tileproof.verify.tensor import UNIT

if TYPE_CHECKING:
    from .conflicts import Piece
    from .plan import Plan
    from .state import Actor, Entry

_READ = ("a", "scale")  # by a multiply, besides what it adds to


def pipelined(one: Piece, two: Piece) -> bool:
    """Whether two accesses of one thread come in the order they were issued in: multiplies into one
    accumulator of one shape and kind, and a multiply after a copy. See also :func:`assumed`."""
    if not one.engine == two.engine == UNIT or not (one.tensor and two.tensor):
        return False
    if one.use == "copy":
        return True
    if assumed(one, two):
        return True
    if one.use != two.use or one.use in _READ:
        return False
    places = [{(a.first, a.stop) for a in p.each} for p in (one, two)]
    return all(a == b or a[1] <= b[0] or b[1] <= a[0] for a in places[0] for b in places[1])


def assumed(one: Piece, two: Piece) -> bool:
    """Whether they are taken to come in order though the text does not list them: a copy, and what
    its thread copied or multiplied by in these columns before. NVIDIA's own kernels rest on it."""
    return one.use in (*_READ, "copy") and two.use == "copy"


def missing(plan: Plan, a: Actor, old: Entry, p: Piece) -> str:
    """What an access lacks to come after an older one that shares a column: "copy" if that one may
    be under way, "race" if it may be made later, a fence "before" or "after"; "" if nothing."""
    one, own = old.piece, old.agent == a.who.number
    if one.use == "free" or p.use == "take":
        return "race"
    lack = _lack(plan, a, old, p)
    return "" if lack and own and plan.follow(one, p) else lack


def _lack(plan: Plan, a: Actor, old: Entry, p: Piece) -> str:
    """The same without the order of issue."""
    one, own = old.piece, old.agent == a.who.number
    place, step = _handed(plan, old)
    waited = own and not one.engine
    if not waited and a.clock.known[place if one.engine else old.agent] < step:
        return "copy" if one.engine or p.engine else "race"
    if waited or one.use == "take" or p.use == "free" or a.seen[place] >= step:
        return ""
    return "after" if a.clock.known[place] >= step else "before"


def _handed(plan: Plan, old: Entry) -> tuple[int, int]:
    """Where a clock says that an access is over for other threads, and from which step on."""
    if old.place is not None:
        return old.place, old.phases
    assert old.end is not None
    return plan.units[old.agent] + 1, old.end


def settled(plan: Plan, a: Actor, old: Entry) -> bool:
    """Whether an access comes before all that an agent still does there."""
    if old.piece.use == "free":
        return False
    place, step = _handed(plan, old)
    if old.piece.use == "take":
        return bool(a.clock.known[old.agent] >= step)
    waited = old.agent == a.who.number and not old.piece.engine
    return waited or bool(a.seen[place] >= step)
