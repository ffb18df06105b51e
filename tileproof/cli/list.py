"""``tileproof list``: every op of the library with its tensors, domains and architectures."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from tileproof.dsl import Op, load_library


def run(as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False) -> None:
    """List the library's ops."""
    ops = load_library().values()
    if as_json:
        print(json.dumps([_describe(op) for op in ops], indent=1))
        return
    table = Table(box=None, pad_edge=False, show_edge=False)
    for column in ("op", "inputs → outputs", "what"):
        table.add_column(column, overflow="fold")
    for op in ops:
        signature = f"{_names(op.inputs)} → {_names(op.outputs)}"
        table.add_row(op.name, signature, op.doc)
    Console(highlight=False).print(table)


def _names(tensors: tuple) -> str:
    return " ".join(f"{t.name}[{','.join(t.shape)}]" for t in tensors)


def _describe(op: Op) -> dict:
    return {
        "name": op.name,
        "doc": op.doc,
        "args": [
            {"name": a.name, "role": a.role, "shape": list(a.shape), "dtype": a.dtype}
            for a in op.args
        ],
        "dims": {
            letter: {"lo": d.lo, "hi": d.hi, "multiple": d.multiple, "static": d.static}
            for letter, d in op.dims.items()
        },
        "types": {k: list(v) for k, v in op.types.items()},
        "params": dict(op.params),
        "archs": sorted({a for v in op.variants for a in v.archs}),
    }
