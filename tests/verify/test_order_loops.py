"""Order where sizes decide how often a loop goes round: TileLang's own pipelines are proved for
every length, and bugs seeded in them found."""

from __future__ import annotations

import pytest
import tilelang.language as T

from tileproof.codegen.lower import lower
from tileproof.dsl import Facts
from tileproof.verify import Verdict, domain, mutate, prove_lowered
from tileproof.verify.arena import shared_sizes
from tileproof.verify.order import analyse
from tileproof.verify.prove import launches_of

ORDERED = ("barriers", "races", "async")
FOUND = (Verdict.REFUTED, Verdict.ALARM)


def sizes(kernel):
    """Every dim in a range, so that nothing is noted about it."""
    dims = {str(v.name) for b in kernel.source.buffer_map.values() for v in b.shape
            if type(v).__name__ == "Var"}  # fmt: skip
    return {"dims": {name: [1, 1 << 20] for name in dims}}


def order(kernel):
    facts = kernel.facts.updated(Facts.read(sizes(kernel)))
    assumed = domain.build(kernel.source, kernel.spec, facts)
    launches, _ = launches_of(kernel, assumed, shared_sizes(kernel.stages))
    return analyse(launches[0])


def lowered(program, arch="sm_90a", **configs):
    return lower(program, arch, pass_configs=configs, keep_stages=True)


# -- programs --------------------------------------------------------------------------------


def gemm(tile=64, step=32, stages=3):
    m, k = T.dynamic("m"), T.dynamic("k")

    @T.prim_func
    def gemm(
        A: T.Tensor((m, k), "float16"),
        B: T.Tensor((k, tile), "float16"),
        C: T.Tensor((m, tile), "float16"),
    ):
        with T.Kernel(T.ceildiv(m, tile), threads=128) as by:
            a = T.alloc_shared((tile, step), "float16")
            b = T.alloc_shared((step, tile), "float16")
            c = T.alloc_shared((tile, tile), "float16")
            acc = T.alloc_fragment((tile, tile), "float32")
            T.clear(acc)
            for i in T.Pipelined(T.ceildiv(k, step), num_stages=stages):
                T.copy(A[by * tile, i * step], a)
                T.copy(B[i * step, 0], b)
                T.gemm(a, b, acc)
            T.copy(acc, c)
            T.copy(c, C[by * tile, 0])

    return gemm


def attention(dim=32, tile=64):
    """Keys and values of an unknown sequence; the softmax is left out, its reductions are not."""
    s = T.dynamic("s")

    @T.prim_func
    def attention(
        Q: T.Tensor((s, dim), "float16"),
        K: T.Tensor((s, dim), "float16"),
        V: T.Tensor((s, dim), "float16"),
        O: T.Tensor((s, dim), "float16"),  # noqa: E741
    ):
        with T.Kernel(T.ceildiv(s, tile), threads=128) as bx:
            q = T.alloc_shared((tile, dim), "float16")
            k = T.alloc_shared((tile, dim), "float16")
            v = T.alloc_shared((tile, dim), "float16")
            scores = T.alloc_fragment((tile, tile), "float32")
            weights = T.alloc_fragment((tile, tile), "float16")
            o = T.alloc_fragment((tile, dim), "float32")
            most = T.alloc_fragment((tile,), "float32")
            T.copy(Q[bx * tile, 0], q)
            T.clear(o)
            T.fill(most, -T.infinity("float32"))
            for j in T.Pipelined(T.ceildiv(s, tile), num_stages=2):
                T.copy(K[j * tile, 0], k)
                T.clear(scores)
                T.gemm(q, k, scores, transpose_B=True, policy=T.GemmWarpPolicy.FullRow)
                T.reduce_max(scores, most, dim=1, clear=False)
                for a, b in T.Parallel(tile, tile):
                    weights[a, b] = T.exp2(scores[a, b] - most[a])
                T.copy(V[j * tile, 0], v)
                T.gemm(weights, v, o, policy=T.GemmWarpPolicy.FullRow)
            T.copy(o, O[bx * tile, 0])

    return attention


def persistent(tile=64, blocks=4, step=32, depth=128):
    """Each block walks over its share of an unknown number of tiles."""
    m = T.dynamic("m")

    @T.prim_func
    def persistent(
        A: T.Tensor((m, depth), "bfloat16"),
        B: T.Tensor((tile, depth), "bfloat16"),
        C: T.Tensor((m, tile), "bfloat16"),
    ):
        with T.Kernel(blocks, threads=128) as block:
            a = T.alloc_shared((tile, step), "bfloat16")
            b = T.alloc_shared((tile, step), "bfloat16")
            acc = T.alloc_fragment((tile, tile), "float32")
            for wave in T.serial(T.ceildiv(T.ceildiv(m, tile), blocks)):
                row = (wave * blocks + block) * tile
                if row < m:
                    T.clear(acc)
                    for i in T.Pipelined(depth // step, num_stages=2):
                        T.copy(A[row, i * step], a)
                        T.copy(B[0, i * step], b)
                        T.gemm(a, b, acc, transpose_B=True)
                    T.copy(acc, C[row, 0])

    return persistent


def persistent_of_any_depth(tile=64, blocks=4, step=32):
    """Tiles and steps of a tile are unknown; counters in local memory tell the slots."""
    m, k = T.dynamic("m"), T.dynamic("k")

    @T.prim_func
    def persistent_of_any_depth(
        A: T.Tensor((m, k), "bfloat16"),
        B: T.Tensor((tile, k), "bfloat16"),
        C: T.Tensor((m, tile), "bfloat16"),
    ):
        with T.Kernel(blocks, threads=128) as block:
            a = T.alloc_shared((tile, step), "bfloat16")
            b = T.alloc_shared((tile, step), "bfloat16")
            acc = T.alloc_fragment((tile, tile), "float32")
            for bx, _ in T.Persistent([T.ceildiv(m, tile), 1], blocks, block):
                T.clear(acc)
                for i in T.Pipelined(T.ceildiv(k, step), num_stages=2):
                    T.copy(A[bx * tile, i * step], a)
                    T.copy(B[0, i * step], b)
                    T.gemm(a, b, acc, transpose_B=True)
                T.copy(acc, C[bx * tile, 0])

    return persistent_of_any_depth


@pytest.mark.parametrize(
    ("program", "arch"),
    [
        (gemm(stages=2), "sm_80"),
        (gemm(), "sm_90a"),
        (gemm(), "sm_100a"),
        (gemm(), "sm_120a"),
        (attention(), "sm_90a"),
        (persistent(), "sm_90a"),
        (persistent_of_any_depth(), "sm_90a"),
    ],
)
def test_proved_for_every_length(program, arch):
    kernel = lowered(program, arch)
    report = prove_lowered(kernel, facts=sizes(kernel), use_cache=False)
    for name in ORDERED:
        found = report.properties[name]
        assert found.verdict is Verdict.PROVED, (name, found.reasons)
    assert report.seconds < 60


# Classes of bugs of synchronisation: wrong parity, count, bytes, barrier, slot; a step left out.
BUGS = (
    "parity-flipped", "arrivals-halved", "arrivals+1", "bytes-halved", "mbarrier+1", "slot+1",
    "mbarrier-wait-dropped", "arrive-dropped", "expect-dropped", "fence-dropped",
    "multiply-wait-dropped", "store-wait-dropped", "store-commit-dropped", "descriptor-offset",
    "barrier-dropped",
)  # fmt: skip
# Without effect: a second barrier of the block follows.
SAME = {(persistent, "barrier-dropped#0"), (attention, "barrier-dropped#0")}


@pytest.mark.parametrize(
    ("program", "kinds"),
    [(gemm, BUGS[::2]), (attention, BUGS[::3]), (persistent, BUGS[1::3])],
)
def test_every_seeded_bug_is_found(program, kinds):
    seeded = [m for m in mutate.mutants(lowered(program()), kinds, most=1)
              if (program, m.name) not in SAME]  # fmt: skip
    assert len(seeded) >= 3
    missed = {}
    for m in seeded:
        outcome = order(m.lowered)
        if not any(f.verdict in FOUND for f in outcome.findings):
            missed[m.name] = outcome
    assert not missed


def test_a_bug_is_shown_at_a_size():
    """The smallest lengths that show it are turned into sizes, and a block with these is run."""
    (mutant,) = mutate.mutants(lowered(gemm()), ["mbarrier-wait-dropped"], most=1)
    (found,) = order(mutant.lowered).findings
    assert found.verdict is Verdict.REFUTED
    assert found.sizes["k"] >= 1 and found.block == (0, 0, 0)


def test_what_is_taken_for_granted_is_said():
    kernel = lowered(gemm())
    report = prove_lowered(kernel, facts=sizes(kernel), use_cache=False)
    assert any("that only wait at mbarriers" in a for a in report.assumptions)
