"""Counterexamples on the virtual GPU: shown, shown otherwise, too large, and not at all."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tileproof.cli import app
from tileproof.codegen.target import Target
from tileproof.reproduce import reproduce
from tileproof.verify import prove_many, to_sarif

PLANTED = f"{Path(__file__).parents[2]}/docs/planted_bug.py:scale"
FACTS = {"dims": {"m": [0, 1 << 20]}}


@pytest.fixture(scope="module")
def planted():
    work = [(Target(PLANTED), "sm_80")]
    return prove_many(work, use_cache=False, facts=FACTS), work


def again(report, **changes):
    (kernel,) = report.kernels
    bounds = kernel.properties["bounds"]
    bounds.counterexamples[0] = replace(bounds.counterexamples[0], reproduced="", **changes)
    return bounds


def test_a_counterexample_is_shown_by_a_run_at_its_sizes(planted):
    report, work = planted
    bounds = again(report)
    reproduce(report, work, FACTS)
    (words,) = [e.reproduced for e in bounds.counterexamples[:1]]
    assert words.startswith("the virtual GPU shows it") and "out-of-bounds" in words
    assert "thread (0, 0, 0)" in words
    (first, *_) = [
        r for r in json.loads(to_sarif(report))["runs"][0]["results"] if r["ruleId"] == "bounds"
    ]
    assert first["properties"]["reproduced"] == words


def test_sizes_at_which_nothing_is_wrong_and_sizes_too_large(planted):
    report, work = planted
    bounds = again(report, sizes={"m": 4})  # the last tile is full: the guard decides nothing
    reproduce(report, work, FACTS)
    assert "do not show it" in bounds.counterexamples[0].reproduced
    bounds = again(report, sizes={"m": 1 << 20})
    reproduce(report, work, FACTS)
    assert "its tensors take 16.0 GiB" in bounds.counterexamples[0].reproduced


def test_the_command_says_so():
    words = ["verify", PLANTED, "--arch", "sm_80", "--dim", "m=0..1048576", "--reproduce"]
    result = CliRunner().invoke(app, words)
    assert "REFUTED" in result.stdout and "the virtual GPU shows it" in result.stdout
