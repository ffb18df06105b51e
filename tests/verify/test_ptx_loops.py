"""The PTX route: loops of unknown trip count, just inside and just outside."""

import pytest

from tests.verify.ptx_cuda import compiled, run
from tileproof.verify import Verdict

# Name → (loop that stays inside, the same one step too far). nvcc unrolls all of them but those
# over the grid by four, counts the trips by a division and peels the remainder.
LOOPS = {
    "by seven": (
        "for (int r = block; r < M; r += 7) y[r * 128 + t] = 0;",
        "for (int r = block; r <= M; r += 7) y[r * 128 + t] = 0;",
    ),
    "by seven in 64 bits": (
        "for (long long r = block; r < M; r += 7) y[r * 128 + t] = 0;",
        "for (long long r = block; r <= M; r += 7) y[r * 128 + t] = 0;",
    ),
    "by the grid": (
        "for (int r = block; r < M; r += gridDim.x) y[r * 128 + t] = 0;",
        "for (int r = block; r <= M; r += gridDim.x) y[r * 128 + t] = 0;",
    ),
    "by seven grids": (
        "for (int r = 6 * block; r < M; r += 7 * gridDim.x) y[r * 128 + t] = 0;",
        "for (int r = 6 * block; r <= M; r += 7 * gridDim.x) y[r * 128 + t] = 0;",
    ),
    "an address and a counter": (
        "float* p = y + block * 128 + t;"
        "for (int r = block; r < M; r += gridDim.x, p += 128 * gridDim.x) *p = 0;",
        "float* p = y + block * 128 + t;"
        "for (int r = block; r < M; r += gridDim.x, p += 129 * gridDim.x) *p = 0;",
    ),
    "downwards": (
        "for (int r = M - 1; r >= 0; r -= 7) y[r * 128 + t] = 0;",
        "for (int r = M; r >= 0; r -= 7) y[r * 128 + t] = 0;",
    ),
    "elements": (
        "for (int i = block * 128 + t; i < M * 128; i += 896) y[i] = x[i];",
        "for (int i = block * 128 + t; i <= M * 128; i += 896) y[i] = x[i];",
    ),
    "nested": (
        "for (int r = block; r < M; r += 3) for (int q = 0; q <= r; q++) y[q * 128 + t] = r;",
        "for (int r = block; r < M; r += 3) for (int q = 0; q <= r + 1; q++) y[q * 128 + t] = r;",
    ),
    "columns": (
        "for (int r = m; r < M; r += 7) for (int c = lane; c < 128; c += 7) y[r * 128 + c] = r;",
        "for (int r = m; r < M; r += 7) for (int c = lane; c < 129; c += 7) y[r * 128 + c] = r;",
    ),
    "indices": (
        "for (int r = block; r < M; r += 7) if (index[r] >= 0) y[index[r] * 128 + t] = 0;",
        "for (int r = block; r < M; r += 7) y[index[r] * 128 + t] = 0;",
    ),
}
HALVED = "for (int s = M; s > 1; s >>= 1) y[(s - 1) * 128 + t] = 0;"


@pytest.fixture(scope="module")
def module():
    bodies = {
        f"{name.replace(' ', '_')}_{side}": body
        for name, pair in LOOPS.items()
        for side, body in zip(("inside", "outside"), pair, strict=True)
    }
    return compiled({**bodies, "halved": HALVED})


@pytest.mark.parametrize("name", LOOPS)
def test_ladder(module, name):
    entry = name.replace(" ", "_")
    inside = run(module, f"{entry}_inside")
    assert inside.verdict is Verdict.PROVED and inside.properties["bounds"].obligations, inside
    outside = run(module, f"{entry}_outside").properties["bounds"]
    assert outside.verdict is Verdict.REFUTED, outside
    assert any(e.confirmed for e in outside.counterexamples)


def test_a_register_that_moves_otherwise_is_unknown_not_an_alarm(module):
    """It stays inside, which is not shown; what a summary made up is no counterexample."""
    bounds = run(module, "halved").properties["bounds"]
    assert bounds.verdict is Verdict.UNKNOWN
    assert bounds.reasons[0].endswith("bounds depends on a value that a loop changes")
