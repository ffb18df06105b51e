"""The second judge of mutants sees what the prime field cannot, and counts nobody's own word."""

import pytest
import tilelang.language as T
import torch

from tileproof.codegen.lower import lower
from tileproof.dsl import Facts
from tileproof.mutation import Outcome, _Checkers, examine, table
from tileproof.twins import Twins, _bytes
from tileproof.verify.field import Reference

FACTS = Facts(dims={"M": (1, 40)})


def sums(right: bool = False, shift: int = 0):
    """Sums of three, from the left or from the right, which over a field are the same."""
    M = T.dynamic("M")

    @T.prim_func
    def kernel(x: T.Tensor((M, 32), "float32"), y: T.Tensor((M, 32), "float32")):
        with T.Kernel(M, threads=32) as m:
            t = T.get_thread_binding()
            a, b, c = x[m, t], x[m, (t + 1) % 32], x[m, (t + 2) % 32]
            y[m, t + shift] = a + (b + c) if right else (a + b) + c

    return lower(kernel, "sm_80", pass_configs={"tl.disable_safe_memory_legalize": True})


def test_a_tensor_of_one_element_has_bytes_whatever_its_stride():
    one = torch.tensor([7, 8], dtype=torch.int32).as_strided((1,), (0,))
    assert _bytes(one).tolist() == [7, 0, 0, 0]


@pytest.fixture(scope="module")
def original():
    return sums()


def test_rounding_is_seen_on_the_virtual_gpu_and_not_over_a_field(original):
    other = sums(right=True)
    assert Reference(original, FACTS, of_source=False).difference(other) is None
    twins = Twins(original, FACTS)
    assert twins.difference(other) == "y has other bits"
    assert twins.difference(original) == ""
    assert "out of bounds" in twins.difference(sums(shift=1))


def test_what_no_run_shows_is_no_bug_of_the_proofs(original, monkeypatch):
    """Fates where engines and checkers disagree, whatever brings that about."""
    says = {"field": None, "device": "", "proofs": None, "values": None}
    monkeypatch.setattr(_Checkers, "judged", lambda self, m: says["field"])
    monkeypatch.setattr(Twins, "difference", lambda self, m: says["device"])
    monkeypatch.setattr(_Checkers, "valued", lambda self, m: says["values"])
    monkeypatch.setattr(_Checkers, "known", [])
    monkeypatch.setattr("tileproof.verify.first_complaint", lambda *_: says["proofs"])
    monkeypatch.setattr(_Checkers, "runs", False)
    monkeypatch.setattr("tileproof.mutation._kept", lambda key, find: find())

    def fate(**given):
        says.update({"field": None, "device": "", "proofs": None, "values": None}, **given)
        (outcome,) = examine(original, FACTS, kinds=["store+1"], most=1)
        return outcome.fate, outcome.device

    assert fate() == ("equivalent", False)
    assert fate(proofs=("bounds", "beyond")) == ("unseen", False)
    assert fate(device="other bits") == ("escaped", True)
    assert fate(device="other bits", proofs=("bounds", "beyond")) == ("proofs", True)


def test_a_table_tells_a_find_from_its_own_word():
    def of(fate, device):
        return Outcome("k", "sm_80", "load+1#0", "load+1", "x[0]", fate, "", True, device)

    outcomes = [of("proofs", None), of("values", True), of("values", False), of("escaped", True)]
    row = table(outcomes)[-1]
    assert (row["values"], row["confirmed"]) == (2, 1)
    assert (row["by_proofs"], row["by_verify"], row["by_both"]) == (0.25, 0.75, 0.75)
    assert row["by_others_word"] == 2 / 3
    assert table([of("equivalent", False)])[-1]["by_verify"] is None
