"""Without a CUDA device the cases of `make gpu` are deselected, with a sentence, and nothing ran is
what the exit code says. With one, their results are written to `bench/results/`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from .card import find

RESULTS = Path(__file__).parents[2] / "bench" / "results"
_SKIPPED = pytest.StashKey[str]()
_DONE = pytest.StashKey[list]()


def pytest_collection_modifyitems(config, items):
    mine = [item for item in items if item.get_closest_marker("gpu")]
    if not mine or config.option.markexpr != "gpu":
        return
    card, reason = find()
    if card is None:
        keep, drop = [item for item in items if item not in mine], mine
        words = f"no CUDA device to run them on: {reason}"
    else:
        drop = [item for item in mine if _arch(item) not in [*card.texts, None]]
        keep = [item for item in items if item not in drop]
        words = f"their text is for other architectures than {card.name} runs"
    if drop:
        config.hook.pytest_deselected(items=drop)
        config.stash[_SKIPPED] = f"gpu: {len(drop)} cases did not run; {words}"
        items[:] = keep


def _arch(item):
    return item.callspec.params.get("arch") if hasattr(item, "callspec") else None


@pytest.fixture
def record(request):
    """``record(case, arch, difference, worst)`` notes the result of a case for the file."""
    done = request.config.stash.setdefault(_DONE, [])

    def note(case, arch, difference, worst):
        done.append({"case": case, "arch": arch, "difference": difference, "worst": worst})

    return note


def pytest_terminal_summary(terminalreporter, config):
    if words := config.stash.get(_SKIPPED, ""):
        terminalreporter.line(words)
    done = config.stash.get(_DONE, [])
    card = find()[0] if done else None
    if card is not None:
        terminalreporter.line(f"gpu: results in {write(RESULTS, card, done)}")


def write(folder, card, done):
    """Writes the results, with the card's name and driver, and returns the path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"gpu-{re.sub(r'[^a-z0-9]+', '-', card.name.lower()).strip('-')}.json"
    agree = sum(not result["difference"] for result in done)
    report = {"card": card.name, "driver": card.driver, "target": card.arch, "agree": agree}
    path.write_text(json.dumps({**report, "cases": done}, indent=1) + "\n")
    return path
