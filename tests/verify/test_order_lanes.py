"""Threads that are followed as one do what each of them does alone."""

import random
from pathlib import Path

import numpy as np
import pytest

from tileproof.codegen.lower import lower
from tileproof.codegen.target import resolve_target
from tileproof.dsl import Facts
from tileproof.verify import domain, operands
from tileproof.verify.arena import shared_sizes
from tileproof.verify.order.lanes import ApartError, agreed, lanes
from tileproof.verify.order.trace import Tracer
from tileproof.verify.order.values import CoarseError, Form
from tileproof.verify.prove import launches_of
from tileproof.verify.replay import Setting

from .test_order_tensor import SINGLE, roles
from .test_tensor_memory import lowered

PROGRAMS = Path(__file__).parents[1] / "runtime" / "virtual" / "programs"


def done(trace, thread):
    """What one thread does, as numbers."""
    segments = []
    for s in trace.segments:
        touched = [
            (hash(one.node), one.mode, one.arena, one.first, one.stop, one.start, one.engine,
             one.load, one.use, tuple(one.loops.items()))
            for a in s.accesses for one in a.each() if one.thread == thread
        ]  # fmt: skip
        segments.append((s.events, s.ask, s.after, touched))
    return segments


def program(name):
    if name == "roles":
        return lower(roles(), "sm_100a", pass_configs=SINGLE, keep_stages=True)
    if name == "scaled":
        return lowered("scaled")
    return lower(resolve_target(f"{PROGRAMS}/{name}.py:{name}", {}), "sm_90a", keep_stages=True)


@pytest.mark.parametrize("name", ["tma_gemm", "ws_gemm", "flash_attention", "roles", "scaled"])
def test_threads_do_alone_what_they_do_together(name):
    kernel = program(name)
    facts = kernel.facts.updated(Facts.read({"dims": {"m": [1, 1 << 20]}}))
    assumed = domain.build(kernel.source, kernel.spec, facts)
    launch = launches_of(kernel, assumed, shared_sizes(kernel.stages))[0][0]
    count = launch.facts.symbols["threadIdx.x"].hi.value + 1
    tracer = Tracer(*launch.machine.source)
    setting = Setting({"threads.x": count, "threads.y": 1, "threads.z": 1}, {}, {})
    while True:
        try:
            together = tracer.traces_of(count, setting)
            break
        except CoarseError as why:
            tracer.finer(why)
    assert [*together] == [*range(count)]
    kinds = {id(t): t for t in together.values()}
    assert len(kinds) < count / 8  # else nothing was shared
    some = {t for kind in kinds for t in sample([n for n in together if id(together[n]) == kind])}
    for thread in some:
        alone = tracer.trace_of([thread], setting)
        assert done(alone, thread) == done(together[thread], thread)


def sample(threads):
    return {threads[0], threads[-1], *random.Random(0).sample(threads, min(2, len(threads)))}


def test_one_number_of_threads_that_differ_parts_them():
    some = lanes([0, 1, 2, 3, 33])
    with pytest.raises(ApartError) as apart:
        bool(some < 2)
    assert [p.tolist() for p in apart.value.parts] == [[2, 3, 4], [0, 1]]
    with pytest.raises(ApartError) as apart:
        int(some % 2)
    assert [p.tolist() for p in apart.value.parts] == [[0, 2], [1, 3, 4]]
    assert int(some // 64) == 0 and bool(some < 64) and [*range(some // 64)] == []
    assert agreed(some // 64) == 0 and agreed(some) is some
    assert lanes([7]) == 7 and type(lanes([7])) is int
    with pytest.raises(OverflowError):
        some * (1 << 60)
    with pytest.raises(OverflowError):
        some << 60


def test_classes_of_iterations_take_one_number_of_each_thread():
    some = lanes([0, 1, 2, 3])
    k = Form({"k": 4}, 8)  # 4u + 8
    for made in (k + some, some + k, some - -k):
        assert isinstance(made, Form) and (made % 4).tolist() == [0, 1, 2, 3]
        assert made.key == ((8, 9, 10, 11), ("k", 4))
    assert ((k + some) - k).tolist() == [0, 1, 2, 3]
    assert some < k and k > some
    with pytest.raises(ApartError):  # some of them are the last iteration, some are not
        bool((some - 2 + k) - k >= 0)


@pytest.mark.parametrize("line", [16, 32, 64, 128])
@pytest.mark.parametrize("mn_major", [False, True])
def test_runs_of_an_operand_are_its_chunks(line, mn_major):
    for start in (0, 16, 32, 512, 1040):
        base, rest = start // 1024 * 1024, start % 1024
        runs = operands.runs((line, 2048, 1024), mn_major, 16, 128, rest)
        covered = np.concatenate([np.arange(a, a + n) for a, n in runs]) + base
        places = operands.places(line, 2048, 1024, mn_major, 16, 128)
        chunks = {(start + p) ^ ((start + p) >> 3 & (line - 16)) for p in places}
        wanted = sorted(b for c in chunks for b in range(c, c + 16))
        assert covered.tolist() == wanted
