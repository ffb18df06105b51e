"""``tileproof inspect --counters``: what kernels move and compute, run on the virtual GPU."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tileproof.dsl import Specialization, check, get

from . import targets
from .progress import bar

COLUMNS = ("kernel", "arch", "bytes", "traffic", "smem", "conflicts", "matrix", "model")


# One launch: plain data for JSON, and the counters it is made of.
Launch = tuple[dict[str, Any], Any]


def count(
    what: str, archs: Sequence[str], dims: list[str], args: list[str], facts: Path | None
) -> list[Launch]:
    """Run the kernel on each architecture, inputs drawn as by ``sanitize``."""
    rows = []
    with bar("counting", len(archs)) as advance:
        for arch in archs:
            rows += _count(what, arch, dims, args, facts)
            advance(arch)
    return rows


def show(rows: Sequence[Launch], archs: Sequence[str], as_json: bool) -> None:
    """Print one row per launch."""
    from tileproof.runtime.virtual import CHIPS

    if as_json:
        print(json.dumps([row for row, _ in rows], indent=1))
        return
    table = Table(box=None, pad_edge=False)
    for name in COLUMNS:
        text = name in ("kernel", "arch", "model")
        table.add_column(name, justify="left" if text else "right", overflow="fold")
    for row, counted in rows:
        shared = counted.shared_read, counted.shared_written
        traffic = counted.sector_bytes / max(1, counted.unique_bytes)
        limit = row["model"]["limit"]
        table.add_row(
            counted.kernel.removesuffix("_kernel"),
            row["arch"],
            _short(counted.unique_bytes),
            f"{traffic:.2f}×",
            _short(sum(s.wavefronts for s in shared)),
            _short(sum(s.conflicts for s in shared)),
            _short(sum(counted.matrix.values())),
            f"{row['model']['microseconds'][limit]:.3g} µs, {limit}",
        )
    console = Console(highlight=False)
    console.print(table)
    console.print(
        "bytes: of global memory touched; traffic: of sectors that accesses ask for, to it;\n"
        "smem: wavefronts; matrix: operations; model: a lower bound at public peaks"
    )
    for arch in archs:
        chip = CHIPS[arch]
        console.print(f"model of {arch}: {chip.name} ({chip.source})", soft_wrap=True)


def _short(number: int) -> str:
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)


def _count(
    what: str, arch: str, dims: list[str], args: list[str], facts: Path | None
) -> list[Launch]:
    from tileproof.codegen.lower import lower
    from tileproof.codegen.target import is_target, parse_args, resolve_target
    from tileproof.codegen.virtual import VirtualKernel
    from tileproof.dsl import Facts
    from tileproof.runtime import virtual
    from tileproof.sanitizer.inputs import draw

    known = Facts.from_dict(targets.facts(facts, dims))
    if is_target(what):
        lowered = lower(resolve_target(what, parse_args(args), arch), arch)
    else:
        spec = _specialization(what, known.dims, parse_args(args))
        lowered = lower(spec, arch)
        own = Facts.of(spec)
        known = dataclasses.replace(own, dims={**own.dims, **known.dims})
    built = VirtualKernel(lowered, checked=True)
    case = draw(lowered.parameters, built.written(), known, 0, 0)
    with virtual.counting() as counted:
        built(*case.arguments)
    rows = []
    for launch in counted.launches:
        bound = virtual.bound(launch, virtual.CHIPS[arch])
        model = {
            "chip": bound.chip.name,
            "source": bound.chip.source,
            "limit": bound.limit,
            "microseconds": {name: s * 1e6 for name, s in bound.seconds.items()},
        }
        row = {"arch": arch, "dims": case.dims, **launch.to_dict(), "model": model}
        rows.append((row, launch))
    return rows


def _specialization(
    name: str, dims: Mapping[str, tuple[int, int]], params: Mapping[str, Any]
) -> Specialization:
    """The op at its tiny sizes but those of `dims` that are static, and `params` or types."""
    op = get(name)
    unknown = sorted(set(dims) - set(op.dims))
    check(not unknown, f"--dim of {op.name}", got=unknown, expected=f"among {sorted(op.dims)}")
    tiny = op.shape_set("tiny")[0][0]
    own = {k: v for k, v in tiny.dims.items() if op.dims[k].derived is None}
    fixed = {k: low for k, (low, _) in dims.items() if op.dims[k].static}
    return op.specialize(**{**own, **tiny.types, **tiny.params, **fixed, **params})
