"""`tileproof sanitize` as a user types it: programs of others, seeds, formats, bad input."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tileproof.cli import main

ROOT = Path(__file__).parents[2]
PROGRAMS = ROOT / "tests/runtime/virtual/programs"

EXTRA = """
import tilelang.language as T

@T.prim_func
def ticks(y: T.Tensor((32,), "int32")):
    with T.Kernel(1, threads=32):
        for i in T.Parallel(32):
            y[i] = T.call_extern("int32", "clock")
"""


def command(*words: str | Path) -> list[str]:
    call = "from tileproof.cli import main; main()"
    return [sys.executable, "-c", call, "sanitize", *map(str, words)]


@pytest.fixture
def sanitize(capsys, monkeypatch):
    """The command in this process: (exit code, stdout, stderr)."""

    def call(*words: str | Path) -> tuple[int, str, str]:
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, "argv", ["tileproof", "sanitize", *map(str, words)])
        with pytest.raises(SystemExit) as done:
            main()
        return (done.value.code or 0, *capsys.readouterr())

    return call


@pytest.fixture(scope="module")
def extra(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("programs") / "extra.py"
    path.write_text(EXTRA)
    return path


def test_a_jit_factory_with_arguments_of_another_project_is_clean(sanitize):
    code, out, err = sanitize(
        f"{PROGRAMS}/flash_attention.py:flash_attention", "--arch", "sm_80", "--arg", "causal=True",
        "--draws", "1",
    )  # fmt: skip
    assert code == 0, out + err
    assert out.startswith("CLEAN") and "1 CLEAN" in out


def test_a_seed_replays_a_defect_exactly(sanitize):
    words = ("docs/planted_bug.py:scale", "--arch", "sm_80", "--draws", "1", "--format", "json")
    words += ("--dim", "m=1..9", "--seed")
    # Of another process first.
    done = subprocess.run(command(*words, "7"), capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1 and done.stderr == ""
    outputs = [done.stdout]
    for seed in ("7", "8"):
        code, out, err = sanitize(*words, seed)
        assert code == 1 and err == ""
        outputs.append(out)
    entries = [json.loads(output)["kernels"][0] for output in outputs]
    assert entries[0]["seed"] == 7 and entries[0]["findings"][0]["kind"] == "out-of-bounds"

    def placed(entry):  # addresses of memory differ between processes
        return [{k: v for k, v in f.items() if k != "message"} for f in entry["findings"]]

    assert placed(entries[0]) == placed(entries[1])
    assert placed(entries[0]) != placed(entries[2])


def test_sarif_goes_to_a_file(sanitize, tmp_path):
    words = ("docs/planted_bug.py:scale", "--arch", "sm_80", "--draws", "1", "--dim", "m=5")
    code, out, _ = sanitize(*words, "--format", "sarif", "-o", tmp_path / "report.sarif")
    assert (code, out) == (1, "")
    (run,) = json.loads((tmp_path / "report.sarif").read_text())["runs"]
    assert {result["ruleId"] for result in run["results"]} == {"out-of-bounds"}


def test_what_is_not_modelled_is_named_and_not_clean(sanitize, extra):
    code, out, _ = sanitize(f"{extra}:ticks", "--arch", "sm_80")
    assert code == 2
    assert out.startswith("UNKNOWN") and "clock" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nothing.py:k",), "nothing.py"),
        (("docs/planted_bug.py:scale", "--arg", "width=3"), "width"),
        (("docs/planted_bug.py:scale", "--arch", "sm_75"), "'sm_75'"),
        (("docs/planted_bug.py:scale", "--facts", "missing.json"), "missing.json"),
    ],
)
def test_bad_arguments_are_one_sentence(sanitize, words, said):
    code, out, err = sanitize(*words)
    assert code == 3 and out == ""
    assert said in err and len(err.splitlines()) == 1, err
