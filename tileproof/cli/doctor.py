"""``tileproof doctor``: what this machine can do, and what to install."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table


def run(as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False) -> None:
    """Show what this machine can build, prove and run."""
    from tileproof.codegen.doctor import examine

    findings = examine()
    if as_json:
        print(json.dumps([vars(f) for f in findings], indent=1))
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    for f in findings:
        table.add_row("ok" if f.ok else "--", f.item, f.detail if f.ok else f"{f.detail}; {f.fix}")
    Console(highlight=False).print(table)
