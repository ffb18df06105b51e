"""Every vector access to global or shared memory meets its width's alignment.

Register arrays have no address, so local buffers carry no obligation.
"""

from __future__ import annotations

from collections.abc import Iterator

from tileproof.verify.encode import Answer
from tileproof.verify.facts import Access
from tileproof.verify.model import Counterexample
from tileproof.verify.terms import Poly, apply, const, poly

from ._run import PROVED, Goal, Launch, found, undecided

# CUDA guarantees 16 bytes for dynamic shared memory; TileLang declares its arena with more.
_ARENA_ALIGN = 1024


def goals(launch: Launch) -> Iterator[Goal]:
    """One obligation per access wider than its element."""
    for access in launch.facts.accesses:
        if access.buffer.scope != "local" and 8 * access.align > access.buffer.bits:
            yield _aligned(launch, access)


def _base(launch: Launch, access: Access) -> int:
    """The alignment of byte 0 of the access's address space."""
    if not access.buffer.tensor:
        return _ARENA_ALIGN
    return launch.domain.tensors[access.buffer.tensor].align


def _aligned(launch: Launch, access: Access) -> Goal:
    align = 8 * access.align  # in bits, since an element may be half a byte
    form = poly(access.index).scale(access.buffer.bits) + poly(const(8 * access.buffer.start))
    # Multiples of the alignment cannot matter, and most monomials are.
    left = Poly({m: c % align for m, c in form.terms.items()}, form.atoms)
    base = _base(launch, access)
    if left.constant == 0 and base % access.align == 0:
        return PROVED
    off = apply("ne", apply("mod", left.term(), const(align)), const(0))
    if base % access.align:
        off = const(1)  # the contract on the pointer is weaker than the access needs
    answer = launch.engine.never(off, access.context)
    if answer.proved:
        return PROVED
    if answer.point is None:
        return undecided(answer, f"alignment of {access.site}")
    return found(_example(launch, access, answer, base), answer.point, answer.loads)


def _example(launch: Launch, access: Access, answer: Answer, base: int) -> Counterexample:
    assert answer.point is not None
    point = answer.point.values
    confirmed = None
    for touched in launch.replay(point).touched:
        bit = 8 * access.buffer.start + touched.offset * access.buffer.bits
        same = touched.node.same_as(access.node) and touched.mode == access.mode
        if same and (bit % (8 * access.align) or base % access.align):
            confirmed = touched
            break
    name, need = access.buffer.name, access.align
    what = f"{name} is accessed {need} bytes wide"
    if base % need:
        what += f", but its pointer is only aligned to {base}"
    elif confirmed is not None:
        bit = 8 * access.buffer.start + confirmed.offset * access.buffer.bits
        what += f" at byte {bit / 8:g}"
    return Counterexample(
        "alignment",
        access.site,
        what,
        buffer=name,
        offset=confirmed.offset if confirmed else None,
        confirmed=confirmed is not None,
        **launch.describe(point),
    )
