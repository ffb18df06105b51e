"""``tileproof verify``: prove kernels for every size of their domain, or show what goes wrong."""

from __future__ import annotations

import os
import sys
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


class Routes(str, Enum):
    """What is read: TileLang's device IR, nvcc's PTX, both; or the IR executed for its values."""

    ir = "ir"
    ptx = "ptx"
    both = "both"
    values = "values"
    all = "all"

    @property
    def each(self) -> list[str]:
        """One after the other."""
        many = {"both": ["ir", "ptx"], "all": ["ir", "ptx", "values"]}
        return many.get(self.value, [self.value])


def run(
    kernels: targets.Kernels = None,
    arch: targets.Arch = None,
    model: Annotated[Path | None, typer.Option(help="Sizes of this HF model.")] = None,
    dim: targets.Dims = None,
    arg: targets.Args = None,
    facts: targets.FactsFile = None,
    fact: targets.OneFact = None,
    route: Annotated[Routes, typer.Option(help="Prove the IR, the PTX; run values.")] = Routes.ir,
    format: Annotated[Format, typer.Option(help="Of the report.")] = Format.text,
    output: Annotated[Path | None, typer.Option("-o", help="Write the report here.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a summary page here, too.")] = None,
    sarif: Annotated[Path | None, typer.Option(help="Write SARIF here, too.")] = None,
    baseline: Annotated[Path | None, typer.Option(help="Waivers, TOML.")] = None,
    reproduce: Annotated[
        bool, typer.Option("--reproduce", help="Run counterexamples on the virtual GPU.")
    ] = False,
    rlimit: Annotated[
        int | None, typer.Option(min=1, help="Solver steps a query may take; default: 10000000.")
    ] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Default: one per core.")] = None,
    cache: Annotated[bool, typer.Option(help="Reuse earlier results.")] = True,
) -> int:
    """Prove kernels for every size. Exit code: 0 proved or waived, 1 refuted, 2 alarm or unknown,
    3 a kernel that cannot be asked about, a stale waiver, a wrong command."""
    from tileproof import verify
    from tileproof.codegen.target import Target, is_target, parse_args
    from tileproof.runtime.cache import atomic_write
    from tileproof.verify import waivers

    archs = targets.archs(arch)
    names = kernels or []
    files = [Target(n, tuple(parse_args(arg or []).items())) for n in names if is_target(n)]
    ops = [n for n in names if not is_target(n)]
    specs = targets.specs(ops, model) if ops or not files else []
    work: list[tuple[Any, str]] = [
        (s, a) for s in specs for a in archs if any(a in v.archs for v in s.op.variants)
    ]
    user = targets.facts(facts, dim or [], fact or [])
    waived = waivers.read(baseline) if baseline is not None else []
    for path in filter(None, (output, html, sarif)):
        targets.writable(path)
    for file in files:
        file.resolve(archs[0])  # what is wrong with it is said before anything is proved
        work += [(file, a) for a in archs]
    with bar("proving", len(work) * len(route.each)) as advance:
        report = verify.prove_many(
            work,
            jobs=jobs or os.cpu_count() or 1,
            on_progress=lambda r, *_: advance(f"{r.kernel} {r.arch}"),
            use_cache=cache,
            facts=user,
            rlimit=rlimit or verify.RLIMIT,
            routes=route.each,
        )
    if reproduce:
        from tileproof.reproduce import reproduce as run_counterexamples

        run_counterexamples(report, work, user)
    targets.meant(user.get("dims", {}), {n for k in report.kernels for n in k.domain})
    stale = waivers.apply(report, waived)
    writers = {
        Format.text: verify.to_text,
        Format.json: verify.to_json,
        Format.sarif: verify.to_sarif,
    }
    text = writers[format](report)
    if output is None:
        print(text)
    else:
        atomic_write(output, text + "\n")
    if html is not None:
        atomic_write(html, verify.to_html(report))
    if sarif is not None:
        atomic_write(sarif, verify.to_sarif(report) + "\n")
    for words in stale:
        print(f"tileproof: {baseline}: {words}", file=sys.stderr)
    return 3 if stale else report.exit_code
