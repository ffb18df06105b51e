"""The commands as a user types them: exit codes, words on stderr, JSON alone on stdout."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def tileproof(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from tileproof.cli import main; main()", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


@pytest.fixture(scope="module")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kernel of docs/planted_bug.py without its bug."""
    text = (ROOT / "docs" / "planted_bug.py").read_text()
    assert text.count("<= m:") == 1
    path = tmp_path_factory.mktemp("kernels") / "fixed.py"
    path.write_text(text.replace("<= m:", "< m:"))
    return path


def test_verify_finds_the_planted_bug_and_names_block_thread_and_size() -> None:
    words = ("verify", "docs/planted_bug.py:scale", "--arch", "sm_90a", "--dim", "m=0..1048576")
    done = tileproof(*words)
    assert done.returncode == 1
    assert "REFUTED  scale sm_90a" in done.stdout
    assert "m=1; block 0; thread 0" in done.stdout
    done = tileproof(*words, "--format", "json")
    report = json.loads(done.stdout)
    example = report["kernels"][0]["properties"]["bounds"]["counterexamples"][0]
    assert done.returncode == 1
    assert example["confirmed"]
    assert (example["sizes"], example["block"][0], example["thread"][0]) == ({"m": 1}, 0, 0)


def test_verify_proves_the_kernel_without_the_bug(fixed: Path) -> None:
    done = tileproof("verify", f"{fixed}:scale", "--arch", "sm_90a", "--dim", "m=0..1048576")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 PROVED" in done.stdout


def test_verify_writes_its_report_to_a_file(fixed: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    done = tileproof(
        *("verify", f"{fixed}:scale", "--arch", "sm_80", "--dim", "m=1..64", "--format", "json"),
        *("-o", report),
    )
    assert (done.returncode, done.stdout) == (0, "")
    assert json.loads(report.read_text())["verdict"] == "PROVED"


def test_inspect_counts_what_a_kernel_moves() -> None:
    words = ("inspect", "norm/rmsnorm_unweighted", "--counters", "--arch", "sm_80")
    words += ("--dim", "D=128", "--dim", "M=65")
    done = tileproof(*words, "--json")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    read, written = row["global_read"], row["global_written"]
    assert read["unique_bytes"] == written["unique_bytes"] == 65 * 128 * 2
    assert (row["model"]["chip"], row["model"]["limit"]) == ("A100 SXM 80 GB", "global memory")
    assert row["model"]["microseconds"]["global memory"] == pytest.approx(
        2 * 65 * 128 * 2 / 2.039e6
    )
    shown = tileproof(*words).stdout
    assert "model" in shown
    assert "1.00×" in shown
    assert max(map(len, shown.splitlines()[:3])) <= 80


def test_inspect_counts_what_a_file_s_kernel_moves() -> None:
    words = ("inspect", "tests/runtime/virtual/programs/softmax.py:softmax", "--counters")
    done = tileproof(*words, "--dim", "m=9", "--arch", "sm_80,sm_90a", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [row["arch"] for row in rows] == ["sm_80", "sm_90a"]
    for row in rows:
        moved = row["global_read"]["unique_bytes"], row["global_written"]["unique_bytes"]
        assert moved == (9 * 256 * 4, 9 * 256 * 4)


def test_build_then_inspect(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    sizes = {"hidden_size": 64, "q_lora_rank": 32, "head_dim": 32, "index_head_dim": 32}
    mixing = {"hc_mult": 4, "hc_sinkhorn_iters": 20, "hc_eps": 1e-6, "rms_norm_eps": 1e-6}
    config.write_text(json.dumps({"model_type": "deepseek_v4", **sizes, **mixing}))
    bundle = tmp_path / "bundle"
    words = ("build", "mhc/collapse", "--arch", "sm_80,sm_90a", "--model", config, "-o", bundle)
    done = tileproof(*words, "--json")
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [e["done"] for e in events] == [1, 2]
    done = tileproof("inspect", bundle, "--json")
    rows = json.loads(done.stdout)
    assert [(r["kernel"], r["arch"]) for r in rows] == [
        ("mhc_collapse__bf16_N4_D64", "sm_80"),
        ("mhc_collapse__bf16_N4_D64", "sm_90a"),
    ]
    assert all(0 < r["resources"]["registers"] <= 255 for r in rows)
    assert all(0 < r["occupancy"]["warps"] <= r["occupancy"]["most"] == 64 for r in rows)
    shown = tileproof("inspect", bundle).stdout
    assert "sm_90a" in shown
    assert max(map(len, shown.splitlines())) <= 80

    done = tileproof("inspect", bundle, "--accesses", "--arch", "sm_80", "--json")
    accesses = json.loads(done.stdout)
    assert {(a["tensor"], a["width"]) for a in accesses} >= {("x", 16), ("y", 16)}
    page = tmp_path / "page.html"
    assert tileproof("inspect", bundle, "--html", page, "--arch", "sm_80").returncode == 0
    assert "mhc_collapse__bf16_N4_D64" in page.read_text()

    other = tmp_path / "other"
    words = ("build", "mhc/collapse", "--arch", "sm_80", "--model", config, "-o", other)
    assert tileproof(*words).returncode == 0
    same = tileproof("inspect", "--compare", other, bundle)
    assert (same.returncode, same.stdout.splitlines()[-1]) == (0, "1 differences, 0 worse")
    gone = tileproof("inspect", "--compare", bundle, other, "--json")
    assert (gone.returncode, json.loads(gone.stdout)["worse"]) == (1, 1)


def test_build_records_proofs(tmp_path: Path, fixed: Path) -> None:
    words = ("--arch", "sm_80", "--dim", "m=0..1048576", "--verify", "--ptx", "-o")
    done = tileproof("build", f"{fixed}:scale", *words, tmp_path / "good")
    assert (done.returncode, done.stderr) == (0, "")
    kernel = json.loads((tmp_path / "good" / "manifest.json").read_text())["specializations"]
    built = kernel["scale"]["archs"]["sm_80"]
    assert built["proofs"]["verdict"] == "PROVED"
    assert built["proofs"]["properties"]["bounds"]["verdict"] == "PROVED"
    assert built["ptx"] == "ptx/scale.sm_80.ptx"
    assert "PROVED" in tileproof("inspect", tmp_path / "good").stdout

    done = tileproof("build", "docs/planted_bug.py:scale", *words, tmp_path / "bad")
    assert done.returncode == 1
    assert done.stderr == "tileproof: REFUTED scale sm_80; run: tileproof verify\n"
    worse = tileproof("inspect", "--compare", tmp_path / "good", tmp_path / "bad")
    assert worse.returncode == 1
    assert "REFUTED" in worse.stdout


def test_inspect_draws_the_roofline_model(tmp_path: Path) -> None:
    words = ("inspect", "gemm/dense", "--arch", "sm_80", "--dim", "M=65", "--plot")
    first, second = tmp_path / "a.svg", tmp_path / "b.svg"
    for path in (first, second):
        done = tileproof(*words, path)
        assert done.returncode == 0, done.stderr
    text = first.read_text()
    assert "A100 SXM 80 GB" in text
    assert "matrix operations per byte" in text
    assert text == second.read_text(), "the same counts make the same bytes"


def test_list_and_doctor_speak_json() -> None:
    names = {op["name"] for op in json.loads(tileproof("list", "--json").stdout)}
    assert {"mhc/pre", "mhc/post", "norm/rmsnorm"} <= names
    done = tileproof("doctor", "--json", "--for", "run,virtual,build,prove")
    report = json.loads(done.stdout)
    items = {f["item"]: f["ok"] for f in report["findings"]}
    assert items["tilelang"] and items["C++ compiler"] and items["nvcc (PyPI)"]
    assert done.returncode == 0
    assert report["can"]["build"]


def test_doctor_says_what_mends_a_problem_and_fails_where_it_is_needed(tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": str(tmp_path), "TILEPROOF_CACHE": "/proc/none"}
    words = (sys.executable, "-c", "from tileproof.cli import main; main()", "doctor")
    for needed, expected in (("run", 0), ("virtual", 3), ("build,prove", 3)):
        done = subprocess.run(
            [*words, "--for", needed], capture_output=True, text=True, env=environment, cwd=ROOT
        )
        assert done.returncode == expected, done.stdout + done.stderr
    assert re.search(r"-- C\+\+ compiler .*\n(?: .*\n)* +apt install g\+\+", done.stdout)
    assert re.search(r"-- cache .*\n(?: .*\n)* +set TILEPROOF_CACHE to a folder", done.stdout)
    assert "not for gpu, virtual, build" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("verify", "--bogus"), "No such option: --bogus"),
        (("verify", "mhc/nope"), "op: got 'mhc/nope', expected one of attention/out_rope"),
        (("verify", "docs/none.py:x"), "kernel file: got docs/none.py, expected a file"),
        (("verify", "docs/planted_bug.py:x"), "got x, expected one of scale"),
        (("verify", "mhc/post", "--arch", "sm_70"), "architecture: got 'sm_70', expected one of"),
        (("verify", "mhc/post", "--dim", "m"), "--dim: got 'm', expected NAME=VALUE"),
        (("verify", "mhc/post", "--dim", "m=a..b"), "--dim m: got 'a..b', expected N or LO..HI"),
        (("build", "--arch", "sm_80", "-o", "x", "--model", "nowhere"), "--model: got nowhere"),
        (
            ("inspect", "norm/rmsnorm", "--counters", "--dim", "Q=1"),
            "--dim of norm/rmsnorm: got ['Q'], expected among ['D', 'M', 'P']",
        ),
        (("inspect", "norm/rmsnorm", "--dim", "M=1"), "got given, expected --counters"),
        (
            ("inspect", "attention/paged", "--counters", "--arg", "spread=3", "--arch", "sm_80"),
            "spread of a token's heads: got 3, expected 1, 2 or 4",
        ),
        (("inspect",), "inspect: got nothing, expected a bundle, an OP or FILE.py:NAME"),
        (("inspect", "norm/rmsnorm", "--plot", "x"), "--plot: got x, expected .svg or .png"),
        (("inspect", "docs", "--counters"), "--counters, --plot: got the bundle docs"),
        (("doctor", "--for", "x"), "--for: got x, expected among run, gpu, virtual, build, prove,"),
        (("inspect", "nowhere"), "op: got 'nowhere', expected one of"),
    ],
)
def test_bad_words_are_one_sentence_and_exit_code_3(words: tuple, message: str) -> None:
    done = tileproof(*words)
    assert done.returncode == 3, done.stdout + done.stderr
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""
    assert not (ROOT / "x").exists()


def test_the_installed_command_exists() -> None:
    command = Path(sys.executable).with_name("tileproof")
    assert shutil.which(str(command)), "the package is not installed with its entry point"


def test_the_reference_page_is_current() -> None:
    command = [sys.executable, "-m", "tileproof.cli.reference"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.count("\n## tileproof ") >= 8
    page = (ROOT / "docs" / "cli.md").read_text()
    assert page == done.stdout, f"docs/cli.md is old; run: {' '.join(command[1:])} > docs/cli.md"
