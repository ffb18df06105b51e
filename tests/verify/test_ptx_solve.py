"""The PTX route's terms and solver: what they rewrite, against arithmetic; what they give up."""

import itertools
import random

import pytest
import tilelang.language as T
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.verify.ptx_cuda import compiled, run
from tileproof.codegen.lower import lower
from tileproof.verify import Verdict
from tileproof.verify.ptx import bits, prove_ptx, solve, walk


@pytest.mark.parametrize("divisor", [3, 5, 7, 10, 144, 641])
@pytest.mark.parametrize("most", [1 << 10, 1 << 20, (1 << 31) - 1])
def test_a_multiplication_that_divides_is_a_division(divisor, most):
    """``c*x >> s`` in the two forms that nvcc prints, and with a constant that is one too small."""
    bits.forget()
    x = bits.var("x", 32, (0, most))
    wide = bits.extend(x, 64, True)
    shift = 32 + divisor.bit_length() - 1
    magic = -(-(1 << shift) // divisor)
    plain = bits.trunc(bits.shr(bits.scale(wide, magic), shift, False), 32)
    high = bits.trunc(bits.shr(bits.scale(wide, magic & 0xFFFFFFFF), 32, False), 32)
    both = bits.add(bits.shr(bits.sub(x, high), 1, False), high)
    wrong = bits.trunc(bits.shr(bits.scale(wide, magic - divisor), shift, False), 32)
    numbers = [0, 1, divisor - 1, divisor, most, most // divisor * divisor, most // divisor]
    numbers += [random.Random(7).randrange(most + 1) for _ in range(50)]
    for n in numbers:
        at = {x: bits.const(n, 32)}
        q = n * (magic & 0xFFFFFFFF) >> 32
        for term, value in (
            (plain, n * magic >> shift),
            (both, ((n - q) >> 1) + q),
            (wrong, n * (magic - divisor) >> shift),
        ):
            assert bits.number(walk.substitute(term, at)) == value, (divisor, n)
    if most == 1 << 10:
        assert any(t.op == "udiv" for t in walk.closure(plain))


def _word(n):
    return st.builds(lambda: (bits.const(n, 32), lambda x, y: n & _MASK))


def _both(make, do):
    """A term and what it means, of two of them."""
    return lambda one, two: (make(one[0], two[0]), lambda x, y: do(one[1](x, y), two[1](x, y)))


_MASK = (1 << 32) - 1
_WORDS = st.recursive(
    st.one_of(
        st.builds(lambda: (bits.var("any x", 32), lambda x, y: x)),
        st.builds(lambda: (bits.var("any y", 32), lambda x, y: y)),
        *map(_word, (0, 1, 2, -1, 1 << 31)),
    ),
    lambda inner: st.one_of(
        st.builds(_both(bits.add, lambda a, b: a + b & _MASK), inner, inner),
        st.builds(_both(bits.sub, lambda a, b: a - b & _MASK), inner, inner),
        st.builds(_both(bits.and_, int.__and__), inner, inner),
        st.builds(_both(bits.or_, int.__or__), inner, inner),
        st.builds(_both(bits.xor, int.__xor__), inner, inner),
        st.builds(lambda a: (bits.shr(a[0], 31, False), lambda x, y: a[1](x, y) >> 31), inner),
        st.builds(
            lambda a: (
                bits.and_(bits.not_(bits.shr(a[0], 31, False)), bits.const(1, 32)),
                lambda x, y: 1 - (a[1](x, y) >> 31),
            ),
            inner,
        ),
        st.builds(
            lambda a, b, one, two: (
                bits.ite(bits.less(a[0], b[0]), one[0], two[0]),
                lambda x, y: (one if _signed(a, x, y) < _signed(b, x, y) else two)[1](x, y),
            ),
            *[inner] * 4,
        ),
    ),
    max_leaves=12,
)
_PREDICATES = st.recursive(
    st.one_of(
        st.builds(_both(bits.eq, int.__eq__), _WORDS, _WORDS),
        st.builds(
            lambda a, b: (
                bits.less(a[0], b[0]),
                lambda x, y: _signed(a, x, y) < _signed(b, x, y),
            ),
            _WORDS,
            _WORDS,
        ),
        st.builds(
            _both(lambda a, b: bits.less(a, b, sign=False), int.__lt__),
            _WORDS,
            _WORDS,
        ),
    ),
    lambda inner: st.one_of(
        st.builds(_both(lambda a, b: bits.all_((a, b)), lambda a, b: a and b), inner, inner),
        st.builds(_both(lambda a, b: bits.any_((a, b)), lambda a, b: a or b), inner, inner),
        st.builds(lambda p: (bits.negate(p[0]), lambda x, y: not p[1](x, y)), inner),
        st.builds(
            _both(lambda a, b: bits.any_((a, bits.all_((a, b)))), lambda a, b: a), inner, inner
        ),
        st.builds(
            _both(
                lambda a, b: bits.all_((bits.negate(a), bits.any_((a, b)))),
                lambda a, b: b and not a,
            ),
            inner,
            inner,
        ),
    ),
    max_leaves=8,
)


def _signed(of, x, y):
    return bits.signed(of[1](x, y), 32)


@settings(deadline=None, max_examples=300)
@given(
    _PREDICATES,
    st.lists(st.integers(0, _MASK) | st.sampled_from([0, 1, 2, _MASK, 1 << 31]), min_size=6),
)
def test_predicates_that_went_through_registers_mean_what_they_meant(predicate, words):
    """Selections of constants, sign bits and junctions are taken apart; against Python's words."""
    term, meaning = predicate
    x, y = (bits.var(f"any {n}", 32) for n in "xy")
    for a, b in itertools.pairwise(words):
        got = walk.substitute(term, {x: bits.const(a, 32), y: bits.const(b, 32)})
        assert got.op == "const" and bool(got.value) is bool(meaning(a, b)), term


def test_rows_of_an_unknown_pitch():
    """(row + 16) * pitch <= (rows - 1) * pitch in linear steps, and not for one row more."""
    bits.forget()
    rows, pitch, row = (bits.var(n, 64, (0, 1 << 20)) for n in ("rows", "pitch", "row"))
    path = [bits.less(bits.add(row, bits.const(16, 64)), rows)]
    room = bits.mul(bits.add(rows, bits.const(-1, 64)), pitch)
    for ahead, holds in ((16, True), (17, False)):
        solver = solve.Solver([], {})
        offset = bits.mul(bits.add(row, bits.const(ahead, 64)), pitch)
        answer = solver.decide(path, bits.negate(bits.less(room, offset)))
        assert answer.holds is holds
        assert not holds or solver.steps < 50_000


def test_a_kernel_whose_steps_are_spent_is_unknown(monkeypatch):
    """The first question, whether any thread runs at all, is still answered."""
    text = compiled({"guarded": "if (m < M) y[m * 128 + lane] = 0;"})
    assert run(text, "guarded").verdict is Verdict.PROVED
    monkeypatch.setattr(solve, "_MOST_STEPS", 1)
    bounds = run(text, "guarded").properties["bounds"]
    assert bounds.verdict is Verdict.UNKNOWN
    assert bounds.reasons[0].endswith("the solver gave up")


def test_a_condition_of_data_does_not_hide_one_of_sizes():
    data = "long long d = (long long)x[t] * 0x123456789; d ^= d >> 17 | d << 5; if (d % 77 == 5) "
    pair = {"inside": f"{data} if (m < M) y[m * 128 + lane] = 0;"}
    pair["outside"] = pair["inside"].replace("m < M", "m <= M")
    text = compiled(pair)
    assert run(text, "inside").verdict is Verdict.PROVED
    assert run(text, "outside").properties["bounds"].verdict in (Verdict.ALARM, Verdict.UNKNOWN)


def test_a_view_is_its_tensor():
    M = T.dynamic("M")

    @T.prim_func
    def kernel(x: T.Tensor((M, 4), "int64"), y: T.Tensor((M, 4), "int64")):
        with T.Kernel(T.ceildiv(M * 4, 128), threads=128) as block:
            flat = T.reshape(x, (M * 4,))
            i = block * 128 + T.get_thread_binding()
            if i < M * 4:
                y[i // 4, i % 4] = flat[i]

    report = prove_ptx(lower(kernel, "sm_80", keep_stages=True), use_cache=False)
    assert report.unmodelled == [] and report.verdict is Verdict.PROVED, report
