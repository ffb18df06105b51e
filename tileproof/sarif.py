"""The frame of a SARIF 2.1.0 log, as every report for code hosts writes it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tileproof import __version__

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def log(
    tool: str,
    rules: Mapping[str, str],
    results: Sequence[Mapping[str, Any]],
    failures: Sequence[str],
    artifacts: Sequence[Mapping[str, Any]] = (),
) -> str:
    """One run of `tool`: rules (id → meaning), results, and what could not be done, in words."""
    described = [{"id": name, "shortDescription": {"text": text}} for name, text in rules.items()]
    run: dict[str, Any] = {
        "tool": {"driver": {"name": tool, "version": __version__, "rules": described}},
        "artifacts": list(artifacts),
        "results": list(results),
        "invocations": [
            {
                "executionSuccessful": not failures,
                "toolExecutionNotifications": [
                    {"level": "error", "message": {"text": text}} for text in failures
                ],
            }
        ],
    }
    return json.dumps({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}, indent=1)
