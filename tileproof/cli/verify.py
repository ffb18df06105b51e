"""``tileproof verify``: prove kernels for every size of their domain, or show what goes wrong."""

from __future__ import annotations

import os
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


def run(
    kernels: targets.Kernels = None,
    arch: targets.Arch = None,
    model: Annotated[Path | None, typer.Option(help="Sizes of this HF model.")] = None,
    dim: Annotated[list[str] | None, typer.Option(help="NAME=LO..HI of a user's kernel.")] = None,
    arg: targets.Args = None,
    facts: targets.FactsFile = None,
    format: Annotated[Format, typer.Option(help="Of the report.")] = Format.text,
    output: Annotated[Path | None, typer.Option("-o", help="Write the report here.")] = None,
    jobs: Annotated[int | None, typer.Option(help="Processes; default: one per core.")] = None,
    cache: Annotated[bool, typer.Option(help="Reuse earlier results.")] = True,
) -> int:
    """Prove kernels for every size. Exit code: 0 proved, 1 refuted, 2 alarm or unknown."""
    from tileproof import verify
    from tileproof.codegen.target import is_target, parse_args, resolve_target

    archs = targets.archs(arch)
    names = kernels or []
    files = [n for n in names if is_target(n)]
    ops = [n for n in names if n not in files]
    specs = targets.specs(ops, model) if ops or not files else []
    work: list[tuple[Any, str]] = [
        (s, a) for s in specs for a in archs if any(a in v.archs for v in s.op.variants)
    ]
    user = targets.facts(facts, dim or [])
    with bar("proving", len(work) + len(files) * len(archs)) as advance:
        report = verify.prove_many(
            work,
            jobs=jobs or os.cpu_count() or 1,
            on_progress=lambda r, *_: advance(f"{r.kernel} {r.arch}"),
            use_cache=cache,
        )
        for name in files:
            kernel = resolve_target(name, parse_args(arg or []))
            for a in archs:
                report.kernels += verify.prove(kernel, a, facts=user, use_cache=cache).kernels
                advance(f"{name} {a}")
    text = verify.to_json(report) if format is Format.json else verify.to_text(report)
    if output is None:
        print(text)
    else:
        output.write_text(text + "\n")
    return report.exit_code
