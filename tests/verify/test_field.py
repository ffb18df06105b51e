"""Value equivalence: the algebra, the library's kernels, and what a wrong value looks like."""

from fractions import Fraction

import numpy as np
import pytest
import tilelang.language as T
from hypothesis import given
from hypothesis import strategies as st

from tileproof.codegen.lower import lower
from tileproof.dsl import Facts, load_library
from tileproof.verify import Verdict, prove
from tileproof.verify.field import EVERY, Reference, UnmodelledError, compare_values, residues
from tileproof.verify.field.arithmetic import reinterpret
from tileproof.verify.field.equivalence import _values
from tileproof.verify.field.memory import FaultError, Memory, element
from tileproof.verify.mutate import mutants

RESIDUES = st.integers(0, residues.P - 1)


@given(RESIDUES, RESIDUES, RESIDUES)
def test_residues_are_a_field(a, b, c):
    a, b, c = (np.int64(n) for n in (a, b, c))
    times = residues.multiply
    assert times(a, (b + c) % residues.P) == (times(a, b) + times(a, c)) % residues.P
    assert times(times(a, b), c) == times(a, times(b, c))
    assert times(a, residues.inverse(a)) == (a != 0)
    assert residues.maximum(a, b) == residues.maximum(b, a)
    least, most = (np.int64(residues.constant(float(x))) for x in ("-inf", "inf"))
    assert residues.maximum(a, least) == a == residues.minimum(a, most)


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_constants_add_and_multiply_as_fractions(x, y):
    a, b = residues.constant(x), residues.constant(y)
    total, product = Fraction(x) + Fraction(y), Fraction(x) * Fraction(y)
    for got, exact in (((a + b) % residues.P, total), (a * b % residues.P, product)):
        assert got * exact.denominator % residues.P == exact.numerator % residues.P


def test_memory_knows_what_was_written():
    memory = Memory("m", 2, 8, "salt")
    half, single, on = element("float16"), element("float32"), np.ones(2, bool)
    memory.store(np.arange(2), np.array([0, 4]), half, np.array([5, 6]), on)
    assert memory.load(np.arange(2), np.array([0, 4]), half, on).tolist() == [5, 6]
    fresh = memory.load(0, np.array([2]), half, on[:1])
    assert fresh != Memory("m", 2, 8, "pepper").load(0, np.array([2]), half, on[:1])
    assert not memory.reread
    memory.load(0, np.array([0]), single, on[:1])
    assert memory.reread
    with pytest.raises(FaultError, match="m: byte 8 of 8"):
        memory.load(0, np.array([8]), half, on[:1])


def tiny(name: str, arch: str = "sm_80"):
    spec = load_library()[name].shape_set("tiny")[0][0]
    return lower(spec, arch), Facts.of(spec)


@pytest.mark.parametrize("name", sorted(load_library()))
def test_the_library_computes_what_its_source_says(name):
    lowered, facts = tiny(name)
    reference = Reference(lowered, facts, of_source=True)
    # tokens, or tiles of them
    assert {0, 1} <= {sizes.get("M", sizes.get("Q")) for sizes in reference.sizes}
    assert reference.difference(lowered) is None


@pytest.mark.parametrize("name", ["gemm/fp8", "gemm/fp4", "gemm/fp4_experts"])
def test_what_is_another_program_on_sm_100a_computes_it_too(name):
    """Blocks without an expert have no scales in tensor memory."""
    lowered, facts = tiny(name, "sm_100a")
    assert Reference(lowered, facts, of_source=True).difference(lowered) is None


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("quant/fp4_cast", "load+1"),
        ("quant/fp4_cast", "difference"),
        ("norm/kv_row", "load+1"),  # threads' values in parallel loops
        ("moe/permute", "trips-1"),  # shuffles
    ],
)
def test_wrong_numbers_are_found(name, kind):
    lowered, facts = tiny(name)
    reference = Reference(lowered, facts, of_source=True)
    seeded = list(mutants(lowered, [kind], 2))
    assert seeded
    for mutant in seeded:
        assert reference.difference(mutant.lowered) is not None, mutant.name


def exchange(take, some=32):
    @T.prim_func
    def kernel(x: T.Tensor((2, 32), "int32"), y: T.Tensor((2, 32), "int32")):
        with T.Kernel(2, threads=32) as block:
            t = T.get_thread_binding()
            y[block, t] = x[block, t]
            if t < some:
                y[block, t] = take(x[block, t])

    return lower(kernel, "sm_80")


@pytest.mark.parametrize(
    ("take", "lane"),
    [
        (lambda v: T.shfl_up(v, 3), lambda t: np.where(t < 3, t, t - 3)),
        (lambda v: T.shfl_down(v, 3), lambda t: np.where(t < 29, t + 3, t)),
        (lambda v: T.shfl_xor(v, 5), lambda t: t ^ 5),
        (lambda v: T.shfl_sync(v, 7), lambda t: 0 * t + 7),
    ],
    ids=["up", "down", "xor", "one"],
)
def test_lanes_exchange_values(take, lane):
    lowered, facts = exchange(take), Facts.from_dict({"values": {"x": [0, 1000]}})
    for of_source in (True, False):
        ((drawn, made),) = _cases(Reference(lowered, facts, of_source=of_source))
        x, y = (m.value[0].reshape(2, 32, 4)[:, :, 0] for m in (drawn["x"], made["y"]))
        assert (y == x[:, lane(np.arange(32))]).all() and len({*x[0]}) > 20


def _cases(reference):
    return [reference._case(i, sizes) for i, sizes in enumerate(reference.sizes)]


def test_an_exchange_with_lanes_that_do_not_take_part_is_refused_by_name():
    reference = Reference(exchange(lambda v: T.shfl_xor(v, 16), 16), Facts(), of_source=True)
    with pytest.raises(UnmodelledError, match="shfl_xor_sync of some threads"):
        _cases(reference)


def test_bits_of_a_number_are_a_function_of_it():
    x = np.array([0, 1, 1, 5])
    bits = reinterpret(x, "float32", "int32")
    assert bits[0] == 0 and bits[1] == bits[2] != bits[3]
    assert (np.abs(bits) < 2**31).all() and len(set(bits.tolist()) & {1, 5}) == 0
    assert reinterpret(np.array([-1]), "int8", "uint8") == 255
    assert reinterpret(x, "uint8", "float8_e8m0fnu")[0] == 0
    one, other = (reinterpret(x, "uint8", t) for t in ("float8_e4m3fn", "float8_e5m2"))
    assert (one[1:] != other[1:]).all()
    # of two threads
    pairs = reinterpret(np.array([[0x21, 0x55], [0x32, 0x67]]), "uint8x2", "float4_e2m1fnx4")
    assert pairs.shape == (4, 2) and pairs[1, 0] == pairs[2, 0]
    assert [len({*column}) for column in pairs.T.tolist()] == [3, 3] and pairs[0, 1] == pairs[1, 1]
    with pytest.raises(UnmodelledError, match="uint8x4 as uint16x2"):
        reinterpret(np.array([[1, 2, 3, 4]]), "uint8x4", "uint16x2")


def test_elements_that_may_be_no_index_are_none_here_and_there():
    rng = np.random.default_rng(0)
    facts = Facts(values={"at": ("0", "n-1")}, none={"at": -1})
    drawn = [_values("at", element("int32"), 100, facts, {"n": n}, rng) for n in (3, 0)]
    assert set(drawn[0].tolist()) == {-1, 0, 1, 2} and set(drawn[1].tolist()) == {-1}


M = T.dynamic("m")


@T.prim_func
def product(
    a: T.Tensor((M, 96), "float16"),
    b: T.Tensor((96, 64), "float16"),
    c: T.Tensor((M, 64), "float16"),
):
    with T.Kernel(T.ceildiv(M, 64), threads=128) as row:
        a_tile = T.alloc_shared((64, 32), "float16")
        b_tile = T.alloc_shared((32, 64), "float16")
        total = T.alloc_fragment((64, 64), "float32")
        T.clear(total)
        for k in T.Pipelined(3, num_stages=2):
            T.copy(a[row * 64, k * 32], a_tile)
            T.copy(b[k * 32, 0], b_tile)
            T.gemm(a_tile, b_tile, total)
        T.copy(total, c[row * 64, 0])


CONFIGS = {"tl.disable_tma_lower": True, "tl.disable_warp_specialized": True}


@pytest.fixture(scope="module")
def pipelined():
    lowered = lower(product, "sm_80", pass_configs=CONFIGS)
    return lowered, Reference(lowered, Facts(), of_source=True)


def test_a_pipelined_product_on_every_schedule(pipelined):
    lowered, reference = pipelined
    assert reference.sizes == [{"m": n} for n in (0, 1, 63, 64, 65, 129)]
    assert reference.difference(lowered, EVERY, largest=2) is None


@pytest.mark.parametrize("kind", ["wait-dropped", "commit-dropped", "barrier-dropped"])
def test_copies_and_warps_out_of_order_show_as_other_values(pipelined, kind):
    _, reference = pipelined
    changed = mutants(pipelined[0], [kind])
    shown = [reference.difference(m.lowered, EVERY) is not None for m in changed]
    assert any(shown), kind


@pytest.mark.parametrize("kind", ["cp.async+8", "slot+1", "trips-1", "rounded"])
def test_other_operands_are_other_values(pipelined, kind):
    _, reference = pipelined
    for mutant in mutants(pipelined[0], [kind], 2):
        found = reference.difference(mutant.lowered)
        clears = "total" in mutant.site and kind == "rounded"  # zero in any format
        assert (found is None) == clears, mutant


def test_a_fault_is_told_with_its_size(pipelined):
    _, reference = pipelined
    guard = next(mutants(pipelined[0], ["grid-floor"]))
    found = reference.difference(guard.lowered)
    assert (found.sizes, found.tensor) == ({"m": 1}, "c")
    wide = next(mutants(pipelined[0], ["guard-dropped"]))
    assert "outside its shape" in reference.difference(wide.lowered).message


@T.prim_func
def largest(a: T.Tensor((M, 32), "int32"), c: T.Tensor((1,), "int32")):
    with T.Kernel(M, threads=32) as row:
        for column in T.Parallel(32):
            T.atomic_max(c[0], a[row, column])


def test_the_route_says_tested_and_at_which_sizes():
    spec = load_library()["norm/rmsnorm"].shape_set("tiny")[0][0]
    (report,) = prove(spec, "sm_80", route="values", use_cache=False).kernels
    assert report.verdict is Verdict.TESTED and report.properties["values"].proved == 6
    assert any("M=17" in note for note in report.notes)
    (other,) = prove(largest, "sm_90a", route="values", use_cache=False).kernels
    assert other.verdict is Verdict.TESTED  # integer maxima, whose order does not show


def test_another_value_is_an_alarm_and_a_fault_is_refuted(pipelined):
    lowered, _ = pipelined
    shifted = next(m for m in mutants(lowered, ["cp.async+8"]) if "a" in m.site)
    report = compare_values(shifted.lowered, use_cache=False)
    assert report.verdict is Verdict.ALARM
    (example,) = report.properties["values"].counterexamples
    assert example.buffer == "c" and example.sizes == {"m": 1}
    wide = next(mutants(lowered, ["guard-dropped"]))
    assert compare_values(wide.lowered, use_cache=False).verdict is Verdict.REFUTED
