"""Seeded bugs at sites of real kernels: each is found, or changes nothing."""

import re

import pytest

from tests.runtime.virtual.catalogue import FOLDER
from tileproof.cli.mutate import outcomes_of
from tileproof.codegen.lower import cuda_text, lower
from tileproof.dsl import Facts, load_library
from tileproof.mutation import _Checkers, examine, table
from tileproof.verify import Verdict, prove_lowered
from tileproof.verify.mutate import mutants, without_int64

SIZES = {"norm/rmsnorm_unweighted": {"D": 96}, "mhc/collapse": {"N": 3, "D": 96}}
# What reads or writes where it must not is for the solver; only another value is for values alone.
OF_MEMORY = {"store+1", "grid-floor", "guard-dropped"}


@pytest.mark.parametrize("name", SIZES)
def test_every_mutant_is_found_or_equivalent(name):
    lowered = lower(load_library()[name].specialize(**SIZES[name]), "sm_80")
    assert prove_lowered(lowered, use_cache=False).verdict is Verdict.PROVED
    outcomes = list(examine(lowered, Facts.of(lowered.spec), most=3, run=False))
    assert {o.fate for o in outcomes} - {"equivalent", "unseen"} == {"proofs", "values"}, outcomes
    for outcome in outcomes:
        # A row past the last one, which is summed and not stored, hangs on M: no output shows it.
        if outcome.fate == "unseen":
            assert outcome.kind == "guard-le" and outcome.why.startswith("determinism: "), outcome
        if outcome.kind in OF_MEMORY:
            assert outcome.fate in ("proofs", "equivalent"), outcome
    assert {o.kind for o in outcomes if o.fate == "proofs"} >= OF_MEMORY
    total = table(outcomes)[-1]
    assert total["class"] == "all" and total["by_verify"] == 1.0
    assert total["seeded"] == len(outcomes)


def test_a_campaign_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    monkeypatch.setenv("TILEPROOF_CACHE", str(tmp_path))
    lowered = lower(load_library()["mhc/collapse"].specialize(N=3, D=96), "sm_80")
    facts = Facts.of(lowered.spec)
    first = list(examine(lowered, facts, kinds=["store+1", "rounded"], most=1, run=False))
    assert [o.fate for o in first] == ["proofs", "values"]
    kept = sorted((tmp_path / "mutants").iterdir())
    asked: list[str] = []
    monkeypatch.setattr(_Checkers, "fate", lambda self, m: asked.append(m.kind) or ("escaped", ""))
    again = list(examine(lowered, facts, kinds=["store+1", "rounded"], most=1, run=False))
    assert again == first and not asked
    for path in kept:
        path.write_text("damaged")
    list(examine(lowered, facts, kinds=["store+1"], most=1, run=False))
    assert asked == ["store+1"]
    other = facts.updated(Facts(dims={"M": (0, 4)}))
    list(examine(lowered, other, kinds=["store+1"], most=1, run=False))
    assert asked == ["store+1"] * 2


def test_a_kernel_that_an_architecture_cannot_have_is_named():
    found, why = outcomes_of(f"{FOLDER}/ws_gemm.py:ws_gemm", "sm_80", [], {}, [], 1, False)
    assert not found
    assert why.startswith("TileLang does not lower it: ") and "requires TMA-capable target" in why


def test_an_unchanged_program_prints_the_text_it_was_lowered_to():
    lowered = lower(load_library()["mhc/collapse"].specialize(N=3, D=96), "sm_80")
    assert cuda_text(lowered.device_mod, "sm_80") == lowered.cuda


def test_copies_past_the_end_are_refuted():
    """cp.async has no extent in the final IR: it comes from the source signature."""
    spec = load_library()["mhc/prenorm_gemm"].specialize(N=5, D=64, C=15)
    lowered = lower(spec, "sm_80")
    shifted = [m for m in mutants(lowered) if m.kind == "cp.async+8"]
    bounds = [prove_lowered(m.lowered, use_cache=False).properties["bounds"] for m in shifted[-2:]]
    assert [b.verdict for b in bounds] == [Verdict.REFUTED] * 2
    assert {e.buffer for b in bounds for e in b.counterexamples} == {"fn", "x"}


def test_dropped_64_bit_casts_are_refuted_at_a_million_tokens():
    lowered = lower(load_library()["norm/rmsnorm"].specialize(D=4096), "sm_80")
    report = prove_lowered(without_int64(lowered), use_cache=False)
    overflow = report.properties["overflow"]
    assert overflow.verdict is Verdict.REFUTED
    example = overflow.counterexamples[0]
    assert example.sizes == {"M": 524289, "P": 4096} and example.block == (524288, 0, 0)
    assert re.search(r"the value is 2147483648$", example.message)


# Barriers that TileLang puts in and the kernel would be right without: every thread reads, and
# refills, only what it copied itself.
NEEDLESS = {"barrier-dropped#0", "barrier-dropped#1", "barrier-dropped#4"}
SYNCHRONISING = {
    "barrier-dropped": {"races", "async"},
    "barrier-guarded": {"barriers"},
    "wait-dropped": {"async"},
    "wait+1": {"async"},
    "commit-dropped": {"async"},
    "slot+1": {"async"},
}


def test_every_dropped_or_weakened_barrier_wait_and_commit_of_a_pipeline_is_refuted():
    """In a ring of two stages with two copies each, fifteen-column tiles laid over one another."""
    spec = load_library()["mhc/prenorm_gemm"].specialize(N=5, D=64, C=15)
    lowered = lower(spec, "sm_80")
    survivors, classes = set(), set()
    for mutant in mutants(lowered, SYNCHRONISING):
        properties = prove_lowered(mutant.lowered, use_cache=False).properties
        refuted = {n for n, p in properties.items() if p.verdict is Verdict.REFUTED}
        classes.add(mutant.kind)
        if not refuted & SYNCHRONISING[mutant.kind]:
            survivors.add(mutant.name)
            assert not refuted
    assert survivors == NEEDLESS and classes == SYNCHRONISING.keys()


def test_a_descriptor_in_the_slot_of_a_ring_is_moved():
    """Its pointer is not the buffer's own, but that some bytes further on."""
    spec = load_library()["gemm/fp4"].shape_set("tiny")[0][0]
    lowered = lower(spec, "sm_90a")
    seeded = list(mutants(lowered, ["descriptor+8"]))
    assert any("handle_add_byte_offset" in m.site for m in seeded)
    original = cuda_text(lowered.device_mod, "sm_90a")
    for mutant in seeded:
        assert cuda_text(mutant.lowered.device_mod, "sm_90a") != original
