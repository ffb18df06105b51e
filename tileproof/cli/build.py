"""``tileproof build``: compile ops ahead of time into a bundle, on a machine without a GPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from . import targets
from .progress import bar


def run(
    output: Annotated[Path, typer.Option("-o", help="Folder of the bundle.")],
    arch: Annotated[str, typer.Option(help="sm_80,sm_89,sm_90a,sm_100a,sm_120a")],
    ops: Annotated[
        list[str] | None,
        typer.Argument(metavar="[OP|FILE.py:NAME]...", help="Default: the whole library."),
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="Only what this Hugging Face model (or config.json) needs.")
    ] = None,
    dim: targets.Dims = None,
    arg: targets.Args = None,
    facts: targets.FactsFile = None,
    jobs: Annotated[int | None, typer.Option(help="Processes; default: one per core.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON event a line.")] = False,
) -> int:
    """Compile ops for several GPU architectures into one bundle."""
    from tileproof.codegen.build import Event, build

    archs = targets.archs(arch)
    specs = targets.specs_and_kernels(ops or [], model, archs, arg or [], facts, dim or [])
    with bar("compiling", len(specs) * len(archs)) as advance:

        def on_event(event: Event) -> None:
            advance(f"{event.symbol} {event.arch}")
            if as_json:
                print(json.dumps(vars(event)), flush=True)

        bundle = build(specs, archs, output, jobs=jobs, on_event=on_event)
    files = [f for f in bundle.rglob("*") if f.is_file()]
    size = sum(f.stat().st_size for f in files) / 1e6
    words = f"{len(specs)} kernels x {len(archs)} archs, {size:.1f} MB"
    print(f"{bundle}: {words}", file=sys.stderr if as_json else sys.stdout)
    return 0
