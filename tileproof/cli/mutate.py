"""``tileproof mutate``: seed bugs in kernels, count how many of them the checkers find."""

from __future__ import annotations

import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from . import targets
from .progress import bar


def run(
    kernels: targets.Kernels = None,
    arch: Annotated[str, typer.Option(help="One or more of sm_80,sm_90a,…")] = "sm_80",
    dim: Annotated[list[str] | None, typer.Option(help="NAME=N or NAME=LO..HI.")] = None,
    arg: targets.Args = None,
    facts: targets.FactsFile = None,
    most: Annotated[
        int | None, typer.Option(min=1, help="Mutants of a class per kernel; default: every site.")
    ] = None,
    kind: Annotated[list[str] | None, typer.Option(help="A class of bugs; repeatable.")] = None,
    sanitize: Annotated[bool, typer.Option(help="Run them on the virtual GPU too.")] = True,
    jobs: Annotated[int | None, typer.Option("-j", min=1, help="Default: one per core.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
    output: Annotated[Path | None, typer.Option("-o", help="Write the report here.")] = None,
) -> int:
    """Seed bugs at the sites of kernels; say what finds them. Exit code: 0 all found, 1 escapes."""
    from tileproof.dsl import load_library
    from tileproof.runtime.cache import atomic_write

    archs = targets.archs(arch)
    known = targets.facts(facts, dim or []) or {}
    work = [(name, a) for name in kernels or list(load_library()) for a in archs]
    outcomes: list[dict[str, Any]] = []
    unknown: dict[str, str] = {}
    # TileLang's compiler threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    count = min(jobs or os.cpu_count() or 1, len(work))
    with ProcessPoolExecutor(count, mp_context=context) as pool, bar("mutating", len(work)) as step:
        futures = {
            pool.submit(
                outcomes_of, name, a, arg or [], known, kind or [], most, sanitize
            ): f"{name} {a}"
            for name, a in work
        }
        for future in as_completed(futures):
            found, reason = future.result()
            outcomes += found
            if reason:
                unknown[futures[future]] = reason
            step(futures[future])
    text = _json(outcomes, unknown) if as_json else _text(outcomes, unknown)
    if output is None:
        print(text)
    else:
        atomic_write(output, text + "\n")
    if unknown:
        return 2
    return int(any(o["fate"] == "escaped" for o in outcomes))


def outcomes_of(
    name: str,
    arch: str,
    args: list[str],
    known: dict[str, Any],
    kinds: list[str],
    most: int | None,
    sanitize: bool,
) -> tuple[list[dict[str, Any]], str]:
    """Outcomes of one kernel, or of each of an op's tiny shapes; why not, if there are none."""
    from tileproof.codegen.lower import lower
    from tileproof.codegen.target import is_target, parse_args, resolve_target
    from tileproof.dsl import ContractError, Facts, get
    from tileproof.mutation import examine
    from tileproof.verify import not_lowered
    from tileproof.verify.field import FaultError, UnmodelledError

    if is_target(name):
        kernels = [resolve_target(name, parse_args(args), arch)]
    else:
        kernels = list(get(name).shape_set("tiny")[0])[:1]
    found = []
    try:
        for kernel in kernels:
            try:
                lowered = lower(kernel, arch, keep_stages=True)
            except ContractError:
                raise
            except Exception as error:  # TileLang's passes raise anything
                return found, not_lowered(error)
            own = Facts.of(lowered.spec) if lowered.spec is not None else lowered.facts
            facts = own.updated(Facts.from_dict(known))
            found += [
                asdict(o) for o in examine(lowered, facts, kinds=kinds, most=most, run=sanitize)
            ]
    except (UnmodelledError, FaultError) as error:
        return [], f"not executed over a prime field: {error}"
    return found, ""


def _json(outcomes: list[dict[str, Any]], unknown: dict[str, str]) -> str:
    from tileproof.mutation import Outcome, table

    rows = table(Outcome(**o) for o in outcomes)
    return json.dumps({"table": rows, "unknown": unknown, "mutants": outcomes}, indent=1)


def _text(outcomes: list[dict[str, Any]], unknown: dict[str, str]) -> str:
    from tileproof.mutation import FATES, Outcome, table

    shown = Table(box=None, pad_edge=False)
    columns = ("class", "seeded", *FATES)
    for name in columns:
        shown.add_column(name, justify="left" if name == "class" else "right")
    rows = table(Outcome(**o) for o in outcomes)
    for row in rows:
        shown.add_row(*(str(row[name]) for name in columns))
    console = Console(highlight=False, width=80)
    with console.capture() as captured:
        console.print(shown)
        for row in rows:
            if row["class"] == "all" and row["by_verify"] is not None:
                proofs, both = f"{row['by_proofs']:.1%}", f"{row['by_both']:.1%}"
                verify = f"verify {row['by_verify']:.1%}"
                console.print(f"of the bugs the proofs find {proofs}, {verify}, all {both}")
        for o in outcomes:
            if o["fate"] == "escaped":
                console.print(f"escaped: {o['kernel']} {o['mutant']}: {o['site']}\n  {o['why']}")
        for name, reason in unknown.items():
            console.print(f"unknown: {name}: {reason}")
    return captured.get().rstrip()
