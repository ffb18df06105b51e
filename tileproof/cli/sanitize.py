"""``tileproof sanitize``: run kernels on the virtual GPU under many schedules, report defects."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from . import targets
from .progress import bar


class Format(str, Enum):
    """How the report is written."""

    text = "text"
    json = "json"
    sarif = "sarif"


def run(
    kernels: targets.Kernels = None,
    arch: targets.Arch = None,
    dim: targets.Dims = None,
    arg: targets.Args = None,
    facts: targets.FactsFile = None,
    fact: targets.OneFact = None,
    seed: Annotated[int, typer.Option(min=0, help="Of inputs and schedules; replays.")] = 0,
    draws: Annotated[int, typer.Option(min=1, help="Sets of inputs per kernel.")] = 3,
    format: Annotated[Format, typer.Option(help="Of the report.")] = Format.text,
    output: Annotated[Path | None, typer.Option("-o", help="Write the report here.")] = None,
) -> int:
    """Run kernels without a GPU and report races, bad accesses, deadlocks. Exit code: 0 clean, 1 a
    defect, 2 not modelled or no end."""
    from tileproof import sanitizer
    from tileproof.codegen.target import is_target, parse_args, resolve_target
    from tileproof.dsl import Facts, get, load_library
    from tileproof.runtime.cache import atomic_write

    archs = targets.archs(arch)
    names = kernels or list(load_library())
    user = Facts.from_dict(targets.facts(facts, dim or [], fact or []))
    work: list[tuple[Any, str, Facts]] = []
    for name in names:
        if is_target(name):
            given = parse_args(arg or [])
            work += [(resolve_target(name, given, a), a, user) for a in archs]
            continue
        specs, _ = get(name).shape_set("tiny")
        for spec in specs:
            own = Facts.of(spec).updated(user)
            have = {a for v in spec.op.variants for a in v.archs}
            work += [(spec, a, own) for a in archs if a in have]
    report = sanitizer.Report()
    with bar("sanitizing", len(work)) as advance:
        for kernel, a, known in work:
            done = sanitizer.sanitize(kernel, arch=a, facts=known, seed=seed, draws=draws)
            report.kernels += done.kernels
            advance(f"{done.kernels[0].kernel} {a}")
    writers = {
        Format.text: sanitizer.to_text,
        Format.json: sanitizer.to_json,
        Format.sarif: sanitizer.to_sarif,
    }
    text = writers[format](report)
    if output is None:
        print(text)
    else:
        atomic_write(output, text + "\n")
    return report.exit_code
