"""``tileproof build``: compile ops ahead of time into a bundle, on a machine without a GPU."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tileproof.dsl import Specialization, check

from . import targets
from .progress import bar

if TYPE_CHECKING:
    from tileproof.verify import Report


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
    wheel: Annotated[bool, typer.Option("--wheel", help="A wheel too, beside the bundle.")] = False,
    form: Annotated[
        str | None,
        typer.Option("--format", help="hf-kernels: a repository for Hugging Face's kernels too."),
    ] = None,
    name: Annotated[str, typer.Option(help="Of the wheel or repository.")] = "tileproof_kernels",
    verify: Annotated[
        bool, typer.Option("--verify", help="Prove the kernels first, record the verdicts.")
    ] = False,
    ptx: Annotated[
        bool, typer.Option("--ptx", help="PTX of sm_80, sm_89 too, for devices not yet known.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON event a line.")] = False,
) -> int:
    """Compile ops for several GPU architectures into one bundle.

    What compiled before is not compiled again; an interrupted build goes on where it was.
    With --verify the exit code is that of `tileproof verify`, and the bundle is written whatever
    the verdicts in it say; without, 0.
    """
    from tileproof.codegen import package
    from tileproof.codegen.build import Event, build

    known = form in (None, "hf-kernels")
    check(known, "--format", got=repr(form), expected="hf-kernels")
    archs = targets.archs(arch)
    specs = targets.specs_and_kernels(ops or [], model, archs, arg or [], facts, dim or [])
    report = _prove(specs, archs, jobs) if verify else None
    with bar("compiling", len(specs) * len(archs)) as advance:

        def on_event(event: Event) -> None:
            advance(f"{event.symbol} {event.arch} {event.seconds:.1f} s")
            if as_json:
                print(json.dumps(vars(event)), flush=True)

        proofs = {(k.kernel, k.arch): k.evidence() for k in report.kernels} if report else None
        bundle = build(specs, archs, output, jobs=jobs, ptx=ptx, proofs=proofs, on_event=on_event)
    out = sys.stderr if as_json else sys.stdout
    for line in _sizes(bundle):
        print(line, file=out)
    if wheel:
        print(package.write_wheel(bundle, name, output.parent), file=out)
    if form is not None:
        folder = output.with_name(f"{output.name}-hf")
        for variant in package.write_hf_kernels(bundle, name, folder):
            print(variant, file=out)
    return report.exit_code if report else 0


def _prove(specs: Sequence[Specialization], archs: Sequence[str], jobs: int | None) -> Report:
    """The report of every kernel; one line on stderr for each that is not proved."""
    from tileproof.verify import prove_many

    work = [(spec, arch) for spec in specs for arch in archs]
    with bar("proving", len(work)) as advance:
        report = prove_many(
            work,
            jobs=jobs or os.cpu_count() or 1,
            on_progress=lambda r, *_: advance(f"{r.kernel} {r.arch}"),
        )
    for kernel in report.kernels:
        if kernel.verdict.value != "PROVED":
            words = f"{kernel.verdict.value} {kernel.kernel} {kernel.arch}; run: tileproof verify"
            print(f"tileproof: {words}", file=sys.stderr)
    return report


def _sizes(bundle: Path) -> list[str]:
    """Bytes per op and architecture, and of everything."""
    from tileproof.runtime.bundle import read_manifest

    manifest = read_manifest(bundle)
    kernels, files = manifest["specializations"], manifest["files"]
    lines = []
    for op in manifest["ops"]:
        own = [k["archs"] for k in kernels.values() if k["op"] == op]
        archs = {
            arch: sum(
                files[k[arch][p]]["bytes"] for k in own if arch in k for p in _PARTS if k[arch][p]
            )
            for arch in manifest["archs"]
        }
        sizes = ", ".join(f"{arch} {size / 1000:.0f} kB" for arch, size in archs.items() if size)
        lines.append(f"{op}: {len(own)} kernels, {sizes}")
    total = sum(f["bytes"] for f in files.values()) / 1e6
    words = f"{len(kernels)} kernels x {len(manifest['archs'])} archs, {total:.1f} MB"
    return [*lines, f"{bundle}: {words}"]


_PARTS = ("cubin", "cuda", "ptx")
