"""The four readings of a term agree: value, interval, polynomial and Z3."""

import numpy as np
import pytest
import z3
from hypothesis import given
from hypothesis import strategies as st

from tileproof.verify import digits, terms
from tileproof.verify.domain import Domain
from tileproof.verify.encode import Engine, Ints, UnsupportedError, Vectors
from tileproof.verify.facts import Context, Facts
from tileproof.verify.terms import Symbol, apply, const, var

SYMBOLS = [Symbol(name, "loop", const(lo), const(hi)) for name, lo, hi in
           (("a", 0, 7), ("b", 0, 100), ("c", -3, 5), ("d", 2, 2))]  # fmt: skip
POINT = st.fixed_dictionaries({s: st.integers(s.lo.value, s.hi.value) for s in SYMBOLS})


def combine(children):
    divisor = st.integers(1, 33).map(const)
    return st.one_of(
        st.builds(apply, st.sampled_from(["add", "sub", "mul", "min", "max"]), children, children),
        st.builds(apply, st.sampled_from(["div", "mod", "tdiv", "tmod"]), children, divisor),
        st.builds(
            lambda op, a, b, c, d: apply("ite", apply(op, a, b), c, d),
            st.sampled_from(["lt", "le", "eq", "ne"]),
            children,
            children,
            children,
            children,
        ),
    )


TERMS = st.recursive(
    st.one_of(st.integers(-40, 40).map(const), st.sampled_from(SYMBOLS).map(var)),
    combine,
    max_leaves=10,
)


def engine():
    return Engine(Facts("test"), Domain())


@given(TERMS, POINT)
def test_value_lies_in_the_interval(term, point):
    lo, hi = engine().ranges.of(term)
    assert lo <= terms.evaluate(term, point) <= hi


@given(TERMS, POINT)
def test_polynomial_has_the_same_value(term, point):
    assert terms.evaluate(terms.poly(term).term(), point) == terms.evaluate(term, point)


@given(TERMS, POINT)
def test_polynomial_interval_is_sound(term, point):
    lo, hi = engine().ranges.of_poly(terms.poly(term))
    assert lo <= terms.evaluate(term, point) <= hi


@given(TERMS, POINT)
def test_solver_terms_have_the_same_value(term, point):
    value, solved_by = int(terms.evaluate(term, point)), engine()
    for backend in (Ints, Vectors):
        try:
            encoding = backend(solved_by, [term])
            wrong = encoding.term(term) != encoding.number(value)
        except UnsupportedError:
            continue
        solver = z3.Solver(ctx=solved_by.context)
        solver.add(wrong, *(encoding.symbol(s) == encoding.number(v) for s, v in point.items()))
        assert solver.check() == z3.unsat


@given(TERMS)
def test_arrays_and_numbers_agree(term):
    grid = {s: np.array([s.lo.value, s.hi.value]) for s in SYMBOLS}
    both = np.broadcast_to(terms.evaluate(term, grid), (2,))
    for i in range(2):
        assert both[i] == terms.evaluate(term, {s: int(v[i]) for s, v in grid.items()})


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 500), st.integers(0, 23)), min_size=1),
    st.integers(1, 500),
)
def test_digits_rebuild_the_flat_index(places, size):
    s, m, c = (Symbol(n, "loop", const(0), const(10**6)) for n in "smc")
    M = Symbol("M", "dim", const(0), const(1 << 20))
    shape = (const(4), var(M), const(24))
    flat = apply("add", apply("mul", apply("mul", var(s), var(M)), const(24)),
                 apply("add", apply("mul", var(m), const(24)), var(c)))  # fmt: skip
    outer, inner = digits.split(flat, shape, 1)
    for place in places:
        point = {s: place[0], m: place[1], c: place[2], M: size}
        values = [int(terms.evaluate(d.term, point)) for d in (outer, inner)]
        assert values == [place[0], place[1] * 24 + place[2]]
        assert values[0] * size * 24 + values[1] == int(terms.evaluate(flat, point))


def test_show_keeps_the_meaning():
    a, b, c = (var(s) for s in SYMBOLS[:3])
    for term in (
        apply("mul", apply("add", a, b), c),
        apply("sub", a, apply("sub", b, c)),
        apply("mod", apply("div", a, const(3)), const(2)),
        apply("mul", a, apply("div", b, const(4))),
        apply("sub", a, const(-3)),
    ):
        for x, y, z in ((1, 50, 2), (7, 99, -3), (0, 3, 5)):
            point = dict(zip(SYMBOLS[:3], (x, y, z), strict=True))
            shown = eval(terms.show(term), {"a": x, "b": y, "c": z})
            assert shown == terms.evaluate(term, point)


@pytest.mark.parametrize("op", ["add", "sub", "mul", "min", "max", "div", "mod", "xor"])
@pytest.mark.parametrize("value", [3, 50])
def test_a_comparison_is_a_number_in_every_operation(op, value):
    b = var(SYMBOLS[1])
    term = apply(op, apply("lt", b, const(7)), const(2))
    found = const(int(terms.evaluate(term, {SYMBOLS[1]: value})))
    there = Context((apply("eq", b, const(value)),))
    for backend in (Vectors,) if op == "xor" else (Ints, Vectors):
        solver = z3.Solver(ctx=(prover := engine()).context)
        members = [apply("ne", term, found), *there.path]
        encoding = backend(prover, members)
        solver.add(*(encoding.term(m) for m in members))
        assert solver.check() == z3.unsat
    assert engine().never(apply("ne", term, found), there).proved
    assert not engine().never(apply("eq", term, found), there).proved
