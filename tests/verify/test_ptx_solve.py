"""The PTX route's terms and solver: what they rewrite, against arithmetic; what they give up."""

import random

import pytest
import tilelang.language as T

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
