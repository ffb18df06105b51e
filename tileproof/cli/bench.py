"""``tileproof bench``: measurements beside peers, in one run on this machine."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from tileproof.dsl import check

SUITES = ("launch", "coldstart", "virtual", "counters", "model")
_PEERS = ("torch", "apache-tvm-ffi", "tilelang", "triton")
_NO_TRITON = (
    "triton is not installed: the virtual GPU is timed without its peer. "
    "To have both, pip install 'tileproof[bench]'."
)


def run(
    suites: Annotated[
        list[str] | None, typer.Argument(metavar="[SUITE]...", help=f"Of: {', '.join(SUITES)}.")
    ] = None,
    peers: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Of `counters`: a folder with a checkout of tile-ai/tilelang named tilelang.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Measure beside peers: a launch, a cold start, how fast the virtual GPU is, a prefill on the
    CPU; count what kernels move and what a decode step launches."""
    chosen = suites or list(SUITES)
    unknown = sorted(set(chosen) - set(SUITES))
    check(not unknown, "bench suites", got=unknown, expected=f"among {', '.join(SUITES)}")
    check(
        peers is None or (peers / "tilelang").is_dir(),
        "--peers",
        got=str(peers),
        expected="a folder that holds the checkout tilelang/",
    )
    console, progress = Console(highlight=False), Console(stderr=True, highlight=False)
    if "virtual" in chosen and not importlib.util.find_spec("triton"):
        progress.print(_NO_TRITON, markup=False, soft_wrap=True)
    results: dict[str, Any] = {"machine": machine()}
    for suite in chosen:
        with progress.status(f"bench {suite}: one to two minutes, `model` ten"):
            measure = importlib.import_module(f"tileproof.bench.{suite}").measure
            results[suite] = measure(peers) if suite == "counters" else measure()
        found = results[suite]
        for table in found.values() if isinstance(found, dict) else [found]:
            if not as_json:
                console.print(_table(table))
    if as_json:
        print(json.dumps(results, indent=1))
    else:
        console.print(", ".join(f"{name} {value}" for name, value in results["machine"].items()))


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    found = {"cpu": cpu, "cores": str(os.cpu_count()), "python": platform.python_version()}
    for package in _PEERS:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, show_edge=False)
    for name in rows[0]:
        table.add_column(name, justify="left" if name == "case" else "right")
    for row in rows:
        table.add_row(*map(_text, row.values()))
    return table


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
