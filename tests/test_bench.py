"""``tileproof bench``: what it prints, with and without a peer. Nothing is timed here."""

import importlib.util
import io
import json
import subprocess
import sys
import textwrap

import pytest
from rich.console import Console
from typer.testing import CliRunner

from tileproof.bench import counters, virtual
from tileproof.cli import app, bench
from tileproof.dsl import get

ROWS = [
    {"case": "GEMM fp16 1024³, tiles of 128", "seconds": 0.0784, "gflops": 27.4,
     "triton_seconds": 2.86, "ratio": 36.5},
    {"case": "mhc/pre, hidden 4096, 16 tokens", "seconds": 0.0119, "gflops": None,
     "triton_seconds": None, "ratio": None},
]  # fmt: skip


@pytest.fixture
def measured(monkeypatch):
    monkeypatch.setattr(virtual, "measure", lambda: ROWS)


def without_triton(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == "triton" else found(n))


def test_rows_are_lines_of_80_columns():
    console = Console(file=io.StringIO(), width=80)
    console.print(bench._table(ROWS))
    heading, *lines = console.file.getvalue().splitlines()
    assert heading.split() == list(ROWS[0])
    assert len(lines) == len(ROWS)
    assert lines[0].split("128", 1)[1].split() == ["0.0784", "27.4", "2.86", "36.5"]
    assert lines[1].endswith("-      -")


def test_without_triton_the_words_say_so_and_json_stays_alone(measured, monkeypatch):
    without_triton(monkeypatch)
    done = CliRunner().invoke(app, ["bench", "virtual", "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["virtual"] == ROWS
    assert "pip install 'tileproof[bench]'" in done.stderr
    monkeypatch.setattr(virtual.virtual, "compile", lambda *_, **__: None)
    assert not any(case.peer for case in virtual.cases())
    monkeypatch.undo()
    monkeypatch.setattr(virtual, "measure", lambda: ROWS)
    if importlib.util.find_spec("triton"):
        assert CliRunner().invoke(app, ["bench", "virtual", "--json"]).stderr == ""


@pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="triton: an extra, as a peer")
@pytest.mark.filterwarnings("error")
def test_a_gate_whose_exponential_is_infinite_is_no_warning_of_the_peer():
    pytest.importorskip("triton", reason="the peer is of the bench extra")
    # In a process of its own, in which Triton is first imported with its interpreter switched on.
    code = """
        import torch
        from tileproof.bench.peers import triton_kernels
        M, N, D = 3, 4, 64
        x, fn = torch.ones(M, N, D), torch.zeros(N * (N + 2), N * D)
        base = torch.zeros(N * (N + 2))
        base[:N] = torch.tensor([-100.0, 0, 1, 100])
        post, comb = torch.zeros(M, N), torch.zeros(M, N, N)
        collapsed = torch.zeros(M, D)
        sizes = {"depth": 64, "width": 64}
        triton_kernels.mhc_pre(x, fn, torch.ones(3), base, post, comb, collapsed, **sizes)
        gates = base[:N].double().sigmoid().sum() + 4e-6
        assert torch.allclose(collapsed.double(), gates.expand(M, D), rtol=1e-6, atol=0)
    """
    command = [sys.executable, "-W", "error::RuntimeWarning", "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


PEER = """
import tilelang.language as T

def scale(D):
    M = T.dynamic("M")

    @T.prim_func
    def kernel(x: T.Tensor((M, D), "float32"), y: T.Tensor((M, D), "float32")):
        with T.Kernel(M, threads=32) as m:
            for d in T.Parallel(D):
                y[m, d] = x[m, d] * 2.0

    return kernel
"""


def test_both_sides_of_a_case_are_counted(tmp_path, monkeypatch):
    (tmp_path / "tilelang").mkdir()
    (tmp_path / "tilelang" / "peer.py").write_text(PEER)
    M, D = 3, 64
    ours = counters.Run("norm/rmsnorm_unweighted", {"D": D, "act": "f32"}, {"M": M})
    peer = counters.Run("tilelang/peer.py:scale", {"D": D}, {"M": M})
    monkeypatch.setattr(counters, "cases", lambda: [counters.Case("rows", [ours], [peer, peer])])
    rows = {row["side"]: row for row in counters.measure(tmp_path)}
    assert rows["tileproof"]["touched"] == 2 * M * D * 4 / 1e6  # x and y once
    assert rows["peer"]["touched"] == 2 * rows["tileproof"]["touched"]  # two launches
    assert [row["side"] for row in counters.measure()] == ["tileproof"]
    done = CliRunner().invoke(app, ["bench", "counters", "--peers", str(tmp_path), "--json"])
    assert json.loads(done.stdout)["counters"] == list(rows.values())


def test_cases_give_our_ops_sizes_and_tensors_they_have():
    for case in counters.cases():
        for run in case.ours:
            spec = get(run.what).specialize(**run.static)
            assert set(run.dims) <= set(spec.op.dims), run.what
            assert set(run.given) <= {a.name for a in spec.args}, run.what


def test_a_folder_without_the_peers_is_refused(tmp_path):
    done = CliRunner().invoke(app, ["bench", "counters", "--peers", str(tmp_path)])
    assert "expected a folder that holds the checkout tilelang/" in str(done.exception)
