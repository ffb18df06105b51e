"""``tileproof inspect``: what the kernels of a bundle, or of an op, use of each GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from tileproof.dsl import check

from . import targets
from .counters import run as run_counters
from .progress import bar

COLUMNS = ("kernel", "arch", "regs", "spill", "smem", "instrs", "matrix", "cubin", "proof")


def run(
    what: Annotated[str, typer.Argument(metavar="BUNDLE|OP|FILE.py:NAME")],
    arch: Annotated[str | None, typer.Option(help="sm_80,sm_90a,…; default: all.")] = None,
    model: Annotated[Path | None, typer.Option(help="For an OP: sizes of this HF model.")] = None,
    counters: Annotated[bool, typer.Option(help="Run it, count what it moves.")] = False,
    dim: Annotated[list[str] | None, typer.Option(help="With --counters: NAME=N.")] = None,
    arg: Annotated[list[str] | None, typer.Option(help="NAME=VALUE for a factory.")] = None,
    facts: Annotated[Path | None, typer.Option(help="Facts about a user's kernel, JSON.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Show registers, spills, shared memory, instructions and verdicts; with --counters what the
    virtual GPU counts: memory traffic, bank conflicts, matrix operations, a roofline model."""
    archs = targets.archs(arch)
    if counters:
        check(model is None, "--model with --counters", got=str(model), expected="--dim")
        run_counters(what, archs, dim or [], arg or [], facts, as_json)
        return
    check(not (dim or arg or facts), "--dim, --arg, --facts", got="given", expected="--counters")
    rows = _of_bundle(Path(what), archs) if Path(what).is_dir() else _of_op(what, archs, model)
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    table = Table(box=None, pad_edge=False)
    for name in COLUMNS:
        text = name in ("kernel", "arch", "proof")
        table.add_column(name, justify="left" if text else "right", overflow="fold")
    for row in rows:
        used = row["resources"]
        smem = used["static_smem"] + used["dynamic_smem"]
        spill = used["spill_stores"] + used["spill_loads"]
        cells = (used["registers"], spill, smem, used["instructions"], row["matrix"])
        cubin = used["cubin_bytes"]
        table.add_row(
            row["kernel"], row["arch"], *map(str, cells), str(cubin), row["verdict"] or "none"
        )
    Console(highlight=False).print(table)


def _of_bundle(path: Path, archs: tuple[str, ...]) -> list[dict[str, Any]]:
    from tileproof.runtime.bundle import read_manifest

    rows = []
    for symbol, facts in read_manifest(path)["specializations"].items():
        for name, built in facts["archs"].items():
            if name in archs:
                verdict = (built["proofs"] or {}).get("verdict")
                rows += [_row(symbol, name, used, verdict) for used in built["resources"]]
    return rows


def _of_op(name: str, archs: tuple[str, ...], model: Path | None) -> list[dict[str, Any]]:
    from tileproof.codegen.build import compile_unit

    work = [(s, a) for s in targets.specs([name], model) for a in archs]
    rows = []
    with bar("compiling", len(work)) as advance:
        for spec, target in work:
            unit = compile_unit(spec, target)
            used = [resources.to_json() for resources in unit.resources]
            rows += [_row(spec.symbol, target, one, None) for one in used]
            advance(f"{spec.symbol} {target}")
    return rows


def _row(symbol: str, arch: str, used: dict[str, Any], verdict: str | None) -> dict[str, Any]:
    from tileproof.codegen.resources import MATRIX

    matrix = sum(used["sass"].get(family, 0) for family in MATRIX[arch])
    return {
        "kernel": symbol,
        "arch": arch,
        "verdict": verdict,
        "matrix": matrix,
        "resources": used,
    }
