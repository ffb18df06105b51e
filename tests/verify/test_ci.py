"""What a CI owner relies on: reports that validate, waivers that expire, errors in one sentence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import date
from pathlib import Path

import jsonschema
import pytest

from tileproof.codegen.target import Target, as_prim_func
from tileproof.dsl import ContractError, Facts, assume
from tileproof.verify import (
    Counterexample,
    KernelReport,
    Report,
    Step,
    Verdict,
    prove,
    prove_many,
    to_html,
    to_json,
    to_sarif,
    to_text,
    waivers,
)
from tileproof.verify.model import PropertyReport

ROOT = Path(__file__).parents[2]
SOURCE = """
import os, signal
import tilelang
import tilelang.language as T
from tileproof.dsl import assume

def killed():
    if not os.environ.get("MAIN_PROCESS") == str(os.getpid()):
        os.kill(os.getpid(), signal.SIGKILL)
    return fill()

def raises(N=64):
    raise KeyError("no such table\\nand more")

def unlowerable(N=64):
    @T.prim_func
    def kernel(y: T.Tensor((N,), "float32")):
        with T.Kernel(1, threads=128):
            a = T.alloc_shared((8, 8), "float16")
            b = T.alloc_fragment((8, 8), "float32")
            T.gemm(a, a, b)
            y[0] = b[0, 0]
    return kernel

def fill(N=64):
    m = T.dynamic("m")
    @T.prim_func
    def kernel(y: T.Tensor((m, N), "float32")):
        with T.Kernel(m, threads=N) as row:
            y[row, T.get_thread_binding()] = 0.0
    return kernel

@assume(dims={"rows": [0, 1000]}, values={"idx": [0, "rows-1"]}, written={"y": "once"})
@tilelang.jit(pass_configs={"tl.disable_safe_memory_legalize": True})
def gather():
    m, rows = T.dynamic("m"), T.dynamic("rows")
    @T.prim_func
    def kernel(x: T.Tensor((rows, 64), "float32"), idx: T.Tensor((m,), "int32"),
               y: T.Tensor((m, 64), "float32")):
        with T.Kernel(m, threads=64) as row:
            y[row, T.get_thread_binding()] = x[idx[row], T.get_thread_binding()]
    return kernel

number = 3
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("kernels") / "users.py"
    path.write_text(SOURCE)
    return path


def command(*words, cwd=ROOT, **environment):
    line = [sys.executable, "-c", "from tileproof.cli import main; main()", "verify"]
    return subprocess.run(
        [*line, *map(str, words)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        check=False,
    )


def race():
    """A report as a property of two threads makes it, and one that stays open."""
    steps = (
        Step("writes s[3]", "s[threadIdx.x] =", (0, 0, 0), (3, 0, 0)),
        Step("reads s[3]", "s[threadIdx.x + 1]", (0, 0, 0), (2, 0, 0), {"k": 1}),
    )
    example = Counterexample("races", "s =", "<race>", {"M": 5}, steps=steps, confirmed=True)
    kernel = KernelReport("gemm", "sm_80", file="k.py", line=7)
    kernel.properties = {
        "races": PropertyReport(Verdict.REFUTED, 4, 3, counterexamples=[example]),
        "bounds": PropertyReport(Verdict.UNKNOWN, 4, 3, reasons=["budget"]),
    }
    return Report([kernel, KernelReport("bad", "sm_80", error="not lowered")], {"z3-solver": "4"})


def test_sarif_validates_and_has_a_flow_per_thread():
    schema = json.loads((ROOT / "tests/data/sarif-schema-2.1.0.json").read_text())
    checker = jsonschema.Draft7Validator(schema)
    log = json.loads(to_sarif(race()))
    assert [e.message for e in checker.iter_errors(log)] == []
    (run,) = log["runs"]
    refuted, unknown = run["results"]
    flows = refuted["codeFlows"][0]["threadFlows"]
    assert [f["locations"][0]["executionOrder"] for f in flows] == [1, 2]
    where = refuted["locations"][0]["physicalLocation"]
    assert where == {"artifactLocation": {"uri": "k.py"}, "region": {"startLine": 7}}
    assert (refuted["level"], unknown["kind"]) == ("error", "open")
    assert run["invocations"][0]["executionSuccessful"] is False
    run["results"][0]["level"] = "fatal"  # the schema would say so
    assert not checker.is_valid(log)


def test_reports_say_both_threads_in_80_columns_and_survive_json():
    report = race()
    text = to_text(report)
    assert max(map(len, text.splitlines())) <= 80
    assert "block 0; thread 3: writes s[3]" in text
    assert "block 0; thread 2; k=1: reads s[3]" in text
    assert Report.from_dict(json.loads(to_json(report))) == report
    page = to_html(report)
    assert "&lt;race&gt;" in page and "<race>" not in page
    assert "http" not in page and "<script" not in page
    assert report.exit_code == 3


WAIVER = """
[[waiver]]
kernel = "gem*"
arch = "sm_80"
property = "bounds"
verdict = "UNKNOWN"
reason = "wgmma is not modelled"
expires = 2027-01-31
"""


def test_a_waiver_tolerates_until_it_expires_and_never_proves(tmp_path):
    path = tmp_path / "waivers.toml"
    path.write_text(WAIVER)
    read = waivers.read(path)
    report = race()
    report.kernels.pop()
    del report.kernels[0].properties["races"]
    assert report.exit_code == 2
    assert waivers.apply(report, read, date(2027, 1, 31)) == []
    bounds = report.kernels[0].properties["bounds"]
    assert bounds.verdict is Verdict.UNKNOWN and "wgmma is not modelled" in bounds.waived
    assert (report.exit_code, report.verdict) == (0, Verdict.WAIVED)
    assert "waived" in to_text(report) and "PROVED" not in to_text(report)
    (result,) = json.loads(to_sarif(report))["runs"][0]["results"]
    assert result["suppressions"][0]["justification"] == bounds.waived

    late = race()
    (words,) = waivers.apply(late, read, date(2027, 2, 1))
    assert (
        words.endswith("expired on 2027-01-31") and not late.kernels[0].properties["bounds"].waived
    )
    late.kernels[0].properties["bounds"].verdict = Verdict.PROVED
    (words,) = waivers.apply(late, read, date(2027, 1, 1))
    assert words.endswith("is unused, remove it")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"UNKNOWN"', '"REFUTED"', "verdict: got REFUTED, expected UNKNOWN or ALARM"),
        ("2027-01-31", '"soon"', "expires: got 'soon', expected a date"),
        ('"wgmma is not modelled"', '" "', "reason: got ' ', expected some text"),
        ('arch = "sm_80"', "", "expected exactly"),
        ("[[waiver]]", "[[waver]]", r"got \['waver'\], expected \[\[waiver\]\] tables"),
        ("[[waiver]]", "[[waiver", "expected TOML"),
    ],
)
def test_a_wrong_baseline_is_one_sentence(tmp_path, old, new, message):
    path = tmp_path / "waivers.toml"
    path.write_text(WAIVER.replace(old, new))
    with pytest.raises(ValueError, match=message) as error:
        waivers.read(path)
    assert "\n" not in str(error.value)


def test_facts_noted_on_a_factory_reach_the_proof_and_the_report_names_what_is_assumed(file):
    kernel = Target(f"{file}:gather").resolve()
    (report,) = prove(kernel, "sm_80", use_cache=False).kernels
    assert report.verdict is Verdict.PROVED
    assert report.domain["rows"] == "0..1000"
    assert "0 <= idx[...] <= rows - 1" in report.assumptions
    assert "note: m has no declared range: 0..1048576 is assumed" in to_text(Report([report]))
    again = as_prim_func(assume(dims={"m": [0, 5]})(kernel))
    facts = Facts.read({"dims": {"rows": [0, 7]}})
    assert prove(again, "sm_80", facts=facts).kernels[0].domain == {"rows": "0..7", "m": "0..5"}
    with pytest.raises(ContractError, match="unknown keys"):
        assume(dim={})


def test_budgets_are_steps_and_the_reason_names_the_option(file):
    kernel = Target(f"{file}:gather").resolve()
    few = [prove(kernel, "sm_80", rlimit=1, use_cache=False).kernels[0] for _ in range(2)]
    for report in few:
        assert report.verdict is not Verdict.PROVED
        reasons = [r for p in report.properties.values() for r in p.reasons]
        assert any("budget of 1 steps is spent, --rlimit" in r for r in reasons)
    verdicts = [[p.verdict for p in r.properties.values()] for r in few]
    assert verdicts[0] == verdicts[1]
    enough = prove(kernel, "sm_80", use_cache=False).kernels[0]
    assert sum(p.rlimit for p in enough.properties.values()) > 0


def test_kernels_that_cannot_be_asked_about_are_errors_beside_the_others(file, tmp_path):
    out = tmp_path / "report.json"
    words = (f"{file}:fill", f"{file}:unlowerable", "--arch", "sm_80", "--jobs", "1")
    done = command(*words, "--format", "json", "-o", out)
    assert done.returncode == 3, done.stderr
    fill, broken = json.loads(out.read_text())["kernels"]
    assert (fill["verdict"], broken["verdict"]) == ("PROVED", "ERROR")
    assert broken["error"].startswith("TileLang does not lower it: ")


def test_a_killed_worker_costs_its_own_kernel_only(file, monkeypatch):
    monkeypatch.setenv("MAIN_PROCESS", str(os.getpid()))
    work = [(Target(f"{file}:killed"), "sm_80"), (Target(f"{file}:fill"), "sm_80")]
    report = prove_many(work, jobs=2)
    assert report.kernels[0].error.startswith("its worker process was killed")
    assert report.kernels[1].verdict is Verdict.PROVED
    assert report.exit_code == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("{file}:number",), "got int, expected a TileLang kernel"),
        (("{file}:raises",), "got KeyError: 'no such table"),
        (("{file}:fill", "--dim", "q=0..4"), "--dim: got q, expected among ['m']"),
        (("{file}:fill", "--dim", "m=3..9:2"), "expected LO to be a multiple of it"),
        (("{file}:fill", "--fact", "color:y=red"), "--fact: got 'color:y=red'"),
        (("{file}:fill", "--baseline", "none.toml"), "baseline: got none.toml"),
        (("{file}:fill", "-o", "none/report.sarif"), "expected a path in a folder that exists"),
    ],
)
def test_bad_input_writes_no_report(file, tmp_path, words, message):
    words = [w.format(file=file) for w in words]
    done = command(*words, "--arch", "sm_80", "--sarif", "out.sarif", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (3, ""), done.stderr
    assert message in done.stderr and len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_contradictory_contracts_are_an_error_and_facts_come_from_the_command_line(file, tmp_path):
    words = (f"{file}:gather", "--arch", "sm_80", "--fact", "multiples:m=4", "--dim", "m=1..3")
    done = command(*words)
    assert done.returncode == 3
    assert "contradict each other: no size meets" in " ".join(done.stdout.split())
    done = command(f"{file}:gather", "--arch", "sm_80", "--fact", "values:idx=0..rows")
    assert done.returncode != 0 and "bounds" in done.stdout


PLUGIN = """
import pytest
from users import fill, gather

@pytest.mark.tileproof(arch="sm_80", dims={"m": (0, 4096)})
def test_proved(tileproof):
    report = tileproof.prove(fill, args={"N": 64}, properties=["bounds"])
    assert report.kernels[0].domain == {"m": "0..4096"}
    assert list(report.kernels[0].properties) == ["bounds"]

def test_refuted(tileproof):
    tileproof.prove(gather, arch="sm_80", facts={"values": {"idx": [0, "rows"]}})
"""


def test_a_test_suite_asserts_a_proof(file):
    (file.parent / "test_users.py").write_text(PLUGIN)
    line = [sys.executable, "-m", "pytest", "-p", "tileproof.pytest_plugin", "--strict-markers"]
    done = subprocess.run(
        [*line, "-p", "no:cacheprovider", "test_users.py"],
        capture_output=True,
        text=True,
        cwd=file.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert "1 failed, 1 passed" in done.stdout, done.stdout + done.stderr
    assert "reads outside x" in done.stdout
