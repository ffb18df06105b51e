"""Seeded bugs at every site of real kernels: each is refuted, or reviewed as harmless here."""

import re

import pytest

from tileproof.codegen.lower import lower
from tileproof.dsl import load_library
from tileproof.verify import Verdict, prove_lowered
from tileproof.verify.mutate import mutants, without_int64

# Survivors, with the reason each is no defect of memory, arithmetic or coverage. A wrong value at a
# right address is for value equivalence to find.
HARMLESS = {
    "norm/rmsnorm_unweighted": {
        "guard-le#2": "guards arithmetic in registers only",
        "guard-le#3": "guards arithmetic in registers only",
        "guard-dropped#0": "guards arithmetic in registers only",
        "stride+1#2": "guards arithmetic in registers only",
        "stride+1#0": "loads fewer rows than exist: a wrong value",
    },
    "mhc/collapse": {
        "load+1#2": "another weight: a wrong value",
        "load+1#3": "another stream: a wrong value",
    },
}
SIZES = {"norm/rmsnorm_unweighted": {"D": 96}, "mhc/collapse": {"N": 3, "D": 96}}


@pytest.mark.parametrize("name", SIZES)
def test_every_mutant_is_refuted_or_harmless(name):
    lowered = lower(load_library()[name].specialize(**SIZES[name]), "sm_80")
    assert prove_lowered(lowered, use_cache=False).verdict is Verdict.PROVED
    survivors, classes = {}, set()
    for mutant in mutants(lowered):
        verdict = prove_lowered(mutant.lowered, use_cache=False).verdict
        classes.add(mutant.kind)
        if verdict is not Verdict.REFUTED:
            survivors[mutant.name] = (verdict, mutant.site)
    assert survivors.keys() == HARMLESS[name].keys(), survivors
    expected = {"guard-le", "guard-dropped", "load+1", "store+1", "stride+1", "grid-floor"}
    assert classes == expected


def test_copies_past_the_end_are_refuted():
    """cp.async has no extent in the final IR: it comes from the source signature."""
    spec = load_library()["mhc/prenorm_gemm"].specialize(K=288, C=15)
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
