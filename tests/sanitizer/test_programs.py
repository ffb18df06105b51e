"""TileLang programs in varied styles, driven from drawn inputs: clean, and not once edited."""

from __future__ import annotations

import dataclasses
import json

import pytest

from tileproof import sanitizer
from tileproof.codegen.lower import lower
from tileproof.codegen.target import resolve_target
from tileproof.dsl import Facts

from ..runtime.virtual.catalogue import FOLDER, PROGRAMS, RUNS


def sanitize(name, args, facts, **options) -> sanitizer.KernelReport:
    kernel = resolve_target(f"{FOLDER}/{name}", args)
    return sanitizer.sanitize(kernel, facts=facts, **options).kernels[0]


@pytest.mark.parametrize(("name", "arch"), RUNS)
def test_programs_are_clean(name, arch):
    program = PROGRAMS[name]
    report = sanitizer.sanitize(program.lowered(arch), facts=program.facts, draws=2).kernels[0]
    assert not report.findings and not report.reason
    assert report.runs == 16


def test_a_slot_given_back_before_its_last_read_is_found():
    """What TileLang 0.1.15's own warp specialisation makes of the scaled GEMM."""
    kernel = resolve_target(f"{FOLDER}/fp8_gemm.py:fp8_gemm")
    lowered = lower(kernel, "sm_90a", pass_configs={"tl.disable_warp_specialized": False})
    findings = sanitizer.sanitize(lowered, facts=PROGRAMS["fp8_gemm"].facts).kernels[0].findings
    assert findings  # one for each of the two that may come first
    for finding in findings:
        assert finding.kind == "race"
        assert "scale)[" in finding.at.text and "scale)[" in finding.other.text


def test_float_atomics_are_no_defect_only_where_that_is_said():
    report = sanitize("gemm_splitk.py:splitk", {}, {"inout": ["C"]}, draws=1)
    assert [f.kind for f in report.findings] == ["schedule-dependent"]


def test_an_index_out_of_its_range_is_met():
    """The end of a range is among the drawn values."""
    facts = {"values": {"index": [-1, "r"]}}
    report = sanitize("softmax.py:gather", {}, facts, draws=1)
    assert {f.kind for f in report.findings} == {"out-of-bounds"}
    assert "argument 'table'" in report.findings[0].message


@pytest.mark.parametrize("words", ["__syncthreads();", "tl::cp_async_wait<0>();"])
def test_every_barrier_and_wait_of_a_pipelined_gemm_is_needed(words):
    """Drops each in turn from the generated text."""
    lowered = lower(resolve_target(f"{FOLDER}/persistent_gemm.py:persistent", {}), "sm_80")
    count = lowered.cuda.count(words)
    assert count
    for index in range(count):
        parts = lowered.cuda.split(words)
        text = words.join(parts[: index + 1]) + words.join(parts[index + 1 :])
        broken = dataclasses.replace(lowered, written=text)
        report = sanitizer.sanitize(broken, draws=1).kernels[0]
        assert "race" in {f.kind for f in report.findings}, f"{words} number {index}"


def test_the_same_seed_finds_the_same():
    case = ("softmax.py:gather", {}, {"values": {"index": [-1, "r"]}})
    first, second = (sanitize(*case, draws=1, seed=5).findings for _ in range(2))
    assert [(f.at, f.dims, f.run, f.count) for f in first] == [
        (f.at, f.dims, f.run, f.count) for f in second
    ]


def test_reports_name_the_line_in_all_formats():
    kernel = resolve_target(f"{FOLDER}/softmax.py:gather", {})
    report = sanitizer.sanitize(kernel, facts={"values": {"index": [-1, "r"]}}, draws=1)
    finding = report.kernels[0].findings[0]
    line = finding.at.line
    assert "table" in report.kernels[0].cuda.splitlines()[line - 1]
    assert f"line {line}: " in sanitizer.to_text(report)
    entry = json.loads(sanitizer.to_json(report))["kernels"][0]
    assert entry["verdict"] == "DEFECT" and entry["findings"][0]["at"]["line"] == line
    program = (FOLDER / "softmax.py").read_text().splitlines()
    row = 1 + next(i for i, words in enumerate(program) if "table[index[row], d]" in words)
    origin = finding.at.origin
    assert origin.file.endswith("programs/softmax.py") and origin.line == row
    assert entry["findings"][0]["at"]["origin"] == {"file": origin.file, "line": row}
    assert program[entry["origin"]["line"] - 1].strip() == "def gather_rows("
    assert f"from {origin.file}:{row}\n" in sanitizer.to_text(report)
    sarif = json.loads(sanitizer.to_sarif(report))
    (run,) = sarif["runs"]
    result = run["results"][0]
    assert sarif["version"] == "2.1.0" and result["ruleId"] == "out-of-bounds"
    assert run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == "out-of-bounds"
    place = result["locations"][0]["physicalLocation"]
    assert place["artifactLocation"]["uri"].endswith("programs/softmax.py")
    assert place["region"]["startLine"] == row
    physical = result["relatedLocations"][0]["physicalLocation"]
    assert physical["region"]["startLine"] == line
    artifact = run["artifacts"][physical["artifactLocation"]["index"]]
    assert artifact["contents"]["text"] == report.kernels[0].cuda
    assert report.exit_code == 1


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"dim": {}}, r"unknown keys \['dim'\], expected among \['dims'"),
        ({"dims": {"m": [3, 1]}}, r"facts.dims.m: got \[3, 1\], expected \[lowest, highest\]"),
        ({"values": {"i": 3}}, "facts.values.i: got 3, expected"),
        ({"written": {"y": "twice"}}, "got 'twice', expected 'once' or 'all'"),
        ({"inout": ["z"]}, r"facts.inout: got \['z'\], expected among"),
    ],
)
def test_facts_that_are_wrong(facts, words):
    with pytest.raises(ValueError, match=words):
        sanitize("softmax.py:softmax", {}, facts)


def test_facts_of_an_op_are_its_declaration():
    from tileproof.dsl import get

    (spec, *_), _ = get("mhc/post").shape_set("tiny")
    facts = Facts.of(spec)
    assert facts.batch == ("M",) and facts.written == {"out": "once"}
