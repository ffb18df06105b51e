"""Execution over a prime field of what TileLang makes by default: TMA, mbarriers, roles, wgmma."""

import numpy as np
import pytest

from tests.runtime.virtual.catalogue import FOLDER, PROGRAMS
from tileproof.codegen.lower import lower
from tileproof.codegen.target import resolve_target
from tileproof.dsl import Facts
from tileproof.verify.changes import is_ordered, of_copies
from tileproof.verify.field import EVERY, TOGETHER, FaultError, Reference, Schedule
from tileproof.verify.field.schedule import DeadlockError, Mbarriers, Meeting, run_all
from tileproof.verify.field.tma import swizzled
from tileproof.verify.mutate import mutants


def program(name: str, arch: str):
    known = PROGRAMS[name]
    kernel = resolve_target(f"{FOLDER}/{known.target}", dict(known.args))
    lowered = lower(kernel, arch, keep_stages=True)
    return lowered, lowered.facts.updated(Facts.from_dict(known.facts))


RUNS = [
    *((name, "sm_90a") for name in ("splitk", "flash_attention", "persistent", "conv", "ws_gemm")),
    *((name, "sm_100a") for name in ("dequant_gemm", "softmax", "histogram")),
    *((name, "sm_120a") for name in ("tma_gemm", "linear_attention", "layernorm")),
]


@pytest.mark.parametrize(("name", "arch"), RUNS)
def test_default_lowering_computes_what_its_source_says(name, arch):
    lowered, facts = program(name, arch)
    reference = Reference(lowered, facts, of_source=True)
    assert reference.difference(lowered) is None


@pytest.fixture(scope="module")
def hopper():
    lowered, facts = program("tma_gemm", "sm_90a")
    return lowered, Reference(lowered, facts, of_source=False)


# The producer waits for the other slot, which is released later: nothing goes wrong.
NEEDLESS = {"slot+1#0"}


def test_every_schedule_computes_the_same(hopper):
    lowered, reference = hopper
    assert reference.difference(lowered, EVERY, largest=1) is None


# Of tcgen05, which test_order_tensor.py and test_tensor_memory.py have.
ELSEWHERE = {"tensor-column+8", "multiply-commit-dropped", "tensor-fence-dropped"}
KINDS = [k for k in of_copies() if k not in ELSEWHERE]


@pytest.mark.parametrize("kind", [*KINDS, "barrier-dropped", "barrier-threads", "slot+1"])
def test_every_seeded_bug_of_copies_shows(hopper, kind):
    lowered, reference = hopper
    seeded = list(mutants(lowered, [kind], 3))
    assert seeded
    for mutant in seeded:
        found = reference.difference(mutant.lowered)
        if found is None and is_ordered(kind):
            found = reference.difference(mutant.lowered, EVERY[1:], largest=1)
        assert (found is None) == (mutant.name in NEEDLESS), mutant


def test_an_mbarrier_counts_arrivals_and_bytes():
    zero = np.zeros(1, np.int64)
    array = Mbarriers("full", 1, 2)
    with pytest.raises(FaultError, match="before its initialization"):
        array.arrive(zero, zero)
    array.init(zero, zero, 2)
    first, second = (array.passed(zero, zero, zero + parity) for parity in (0, 1))
    assert second() and not first()  # the phase before the first is over
    array.arrive(zero, zero)
    array.expect(zero, zero, 16)
    array.arrive(zero, zero)
    assert not first()
    with pytest.raises(FaultError, match="an arrival more"):
        array.arrive(zero, zero)
    array.complete(zero, zero, 16)
    assert first() and not array.passed(zero, zero, zero + 1)()
    with pytest.raises(FaultError, match="outside its array"):
        array.arrive(zero, zero + 2)


def test_threads_meet_as_often_as_all_come():
    meeting = Meeting(blocks=2, count=2)
    waits = meeting.arrive(np.array([0, 1, 1]))
    assert not waits()
    assert meeting.arrive(np.array([0]))() and waits()
    with pytest.raises(FaultError, match="3 threads at a barrier of 2"):
        meeting.arrive(np.array([1, 1, 1]))


@pytest.mark.parametrize("schedule", EVERY)
def test_who_runs_ahead_and_waits_without_end(schedule):
    steps: list[str] = []

    def takes(name, *conditions):
        for condition in conditions:
            steps.append(name)
            yield condition

    run_all([takes("a", *[lambda: True] * 2), takes("b", *[lambda: True] * 2)], [], schedule)
    want = {"": "abab", "first": "aabb", "last": "bbaa"}[schedule.ahead]
    assert "".join(steps) == want
    with pytest.raises(DeadlockError, match="wait for ever"):
        run_all([takes("a", lambda: False)], [], schedule)
    arrived: list[int] = []
    run_all([takes("a", lambda: bool(arrived))], [lambda: arrived.append(1)], schedule)


def test_a_swizzle_permutes_chunks_of_a_line():
    rows = np.arange(0, 1024, 128)
    assert swizzled(rows, 128).tolist() == [row + 16 * i for i, row in enumerate(rows)]
    assert swizzled(np.arange(64), 16).tolist() == list(range(64))
    for line in (32, 64, 128):
        assert sorted(swizzled(np.arange(1024), line)) == list(range(1024))


def test_a_tile_stored_at_once_hides_that_nothing_waits_for_it(hopper):
    lowered, reference = hopper
    wait = next(mutants(lowered, ["store-wait-dropped"]))
    assert reference.difference(wait.lowered, [TOGETHER]) is not None
    assert reference.difference(wait.lowered, [Schedule("first", late=False)]) is None
