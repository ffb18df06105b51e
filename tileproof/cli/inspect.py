"""``tileproof inspect``: what the kernels of a bundle, or of an op, use of each GPU."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from tileproof.dsl import check
from tileproof.runtime.cache import atomic_write

from . import counters, inspected, targets

COLUMNS = ("arch", "regs", "spill", "smem", "warps", "matrix", "narrow", "instrs", "cubin", "proof")
ACCESSES = ("access", "tensor", "bytes", "sectors", "line", "narrow because")
WORSE = 1


def run(
    what: Annotated[
        str | None, typer.Argument(metavar="[BUNDLE|OP|FILE.py:NAME]", show_default=False)
    ] = None,
    arch: Annotated[str | None, typer.Option(help="sm_80,sm_90a,…; default: all.")] = None,
    model: Annotated[Path | None, typer.Option(help="For an OP: sizes of this HF model.")] = None,
    accesses: Annotated[
        bool, typer.Option("--accesses", help="Each access to global memory, and its width.")
    ] = False,
    count: Annotated[bool, typer.Option("--counters", help="Run it, count what it moves.")] = False,
    dim: Annotated[list[str] | None, typer.Option(help="With --counters: NAME=N.")] = None,
    arg: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE for a factory or an op.")
    ] = None,
    facts: Annotated[Path | None, typer.Option(help="Facts about a user's kernel, JSON.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write all of it as a page.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Count, draw the roofline model: .svg or .png.")
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="OLD NEW", help="Two bundles: exit code 1 if NEW is worse."),
    ] = None,
    percent: Annotated[
        float, typer.Option(min=0, help="With --compare: what code may grow by.")
    ] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> int:
    """Show registers, spills, shared memory, resident warps, matrix instructions and verdicts.

    With --accesses: how wide each access to global memory is in the machine code, and why not
    16 bytes. With --counters: what the virtual GPU counts, memory traffic, bank conflicts, matrix
    operations, and a roofline model. With --compare: what differs between two bundles.
    """
    if compare is not None:
        check(what is None, "inspect --compare", got=f"{what} too", expected="OLD and NEW alone")
        return _compare(*compare, percent, as_json)
    check(what is not None, "inspect", got="nothing", expected="a bundle, an OP or FILE.py:NAME")
    assert what is not None
    one = sum((accesses, count, plot is not None, html is not None)) <= 1
    check(one, "inspect", got="several of --accesses, --counters, --plot, --html", expected="one")
    bundle = Path(what).is_dir()
    counted = count or plot is not None or (html is not None and not bundle)
    _check_options(what, counted and bundle, html, plot, model if counted else None)
    given = dim or arg or facts
    check(counted or ":" in what or not given, "--dim, --arg, --facts", got="given",
          expected="--counters")  # fmt: skip
    archs = targets.archs(arch)
    launches = counters.count(what, archs, dim or [], arg or [], facts) if counted else []
    if plot is not None:
        from .plot import write

        write(plot, launches)
    elif count:
        counters.show(launches, archs, as_json)
    if count or plot is not None:
        return 0
    wide = accesses or html is not None
    units = inspected.units(what, archs, model, arg or [], facts, dim or [], origins=wide)
    rows = inspected.resources(units)
    places = inspected.accesses(units) if wide else []
    if html is not None:
        from .page import page

        atomic_write(html, page(what, rows, places, launches))
    elif as_json:
        print(json.dumps(places if accesses else rows, indent=1))
    elif accesses:
        _show_accesses(places)
    else:
        _show(rows)
    return 0


def _check_options(
    what: str, counts: bool, html: Path | None, plot: Path | None, model: Path | None
) -> None:
    """Refuse before the work what would be refused after it."""
    check(not counts, "--counters, --plot", got=f"the bundle {what}", expected="an OP or a file")
    check(model is None, "--model with --counters", got=str(model), expected="--dim")
    for report in filter(None, (html, plot)):
        targets.writable(report)
    if plot is not None or (html is not None and not Path(what).is_dir()):
        from .plot import check_path

        check_path(plot)


def _show(rows: Sequence[dict[str, Any]]) -> None:
    console = Console(highlight=False)
    for kernel, own in itertools.groupby(rows, lambda row: row["kernel"]):
        console.print(kernel, soft_wrap=True)
        table = _table(COLUMNS, left=("arch", "proof"))
        for row in own:
            table.add_row(*inspected.figures(row))
        console.print(table)
    print("warps: resident on a multiprocessor, of those it can hold; matrix: instructions;")
    print("narrow: accesses to global memory of less than 16 bytes a thread, of all")


def _show_accesses(places: Sequence[dict[str, Any]]) -> None:
    left = [name for name in ACCESSES if name not in ("bytes", "sectors")]
    for (kernel, arch), own in itertools.groupby(places, lambda p: (p["kernel"], p["arch"])):
        console = Console(highlight=False)
        console.print(f"{kernel} {arch}", soft_wrap=True)
        table = _table(ACCESSES, left)
        for cells in inspected.merged(list(own)):
            table.add_row(*cells)
        console.print(table)
    print("access: how many instructions; bytes: of a thread; sectors: of 32 bytes that a full")
    print("warp asks for, and the fewest that could hold its bytes")


def _compare(old: Path, new: Path, percent: float, as_json: bool) -> int:
    from tileproof.codegen.compare import compare
    from tileproof.runtime.bundle import read_manifest

    changes = compare(read_manifest(old), read_manifest(new), percent)
    worse = sum(change.worse for change in changes)
    if as_json:
        print(json.dumps({"worse": worse, "changes": [vars(c) for c in changes]}, indent=1))
        return WORSE if worse else 0
    table = _table(("kernel", "arch", "what", "old", "new", ""), left=("kernel", "arch", "what"))
    for change in changes:
        cells = map(str, (change.kernel, change.arch, change.what, change.old, change.new))
        table.add_row(*cells, "worse" if change.worse else "")
    console = Console(highlight=False)
    if changes:
        console.print(table)
    console.print(f"{len(changes)} differences, {worse} worse")
    return WORSE if worse else 0


def _table(columns: Sequence[str], left: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in columns:
        justify: Any = "left" if name in left else "right"
        table.add_column(name, justify=justify, overflow="fold")
    return table
