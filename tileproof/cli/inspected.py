"""What ``tileproof inspect`` shows of a kernel, as plain data: from a bundle, or compiled."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tileproof.dsl import arch as architecture

from . import targets
from .progress import bar


@dataclass(frozen=True)
class Inspected:
    """One specialization for one architecture. `origins`: of each line of `cuda`, if known;
    `multiples`: what sizes are known to be multiples of."""

    symbol: str
    arch: str
    cuda: str
    resources: Sequence[dict[str, Any]]
    verdict: str | None
    contract_fma: bool
    multiples: dict[str, int]
    origins: Sequence[Any] = ()


def units(
    what: str,
    archs: Sequence[str],
    model: Path | None,
    args: list[str],
    facts: Path | None,
    dims: list[str],
    origins: bool,
) -> list[Inspected]:
    """The kernels of a bundle, an op or a user's file, compiled where they are not in a bundle.
    `origins` lowers them once more to know of which line of a program a line is."""
    if Path(what).is_dir():
        return list(_of_bundle(Path(what), archs))
    from tileproof.codegen.build import compile_unit
    from tileproof.codegen.lower import lower

    user = ":" in what
    options = (args, facts, dims) if user else ([], None, [])
    specs = targets.specs_and_kernels([what], model, archs, *options)
    work = [(spec, arch) for spec in specs for arch in archs]
    found = []
    with bar("compiling", len(work)) as advance:
        for spec, arch in work:
            unit = compile_unit(spec, arch)
            found.append(
                Inspected(
                    spec.symbol,
                    arch,
                    unit.cuda,
                    [used.to_json() for used in unit.resources],
                    None,
                    spec.op.variant(arch).contract_fma,
                    {name: d.multiple for name, d in spec.op.dims.items()},
                    # What a build adds, such as the check of elements, comes after these lines.
                    lower(spec, arch).origins if origins else (),
                )
            )
            advance(f"{spec.symbol} {arch}")
    return found


def _of_bundle(path: Path, archs: Sequence[str]) -> Iterator[Inspected]:
    from tileproof.runtime.bundle import Bundle

    bundle = Bundle(path)
    for symbol, facts in bundle.manifest["specializations"].items():
        dims = bundle.manifest["ops"][facts["op"]]["dims"]
        for arch, built in facts["archs"].items():
            if arch in archs:
                cuda = bundle.read(built["cuda"]).decode()
                verdict = (built["proofs"] or {}).get("verdict")
                multiples = {name: d["multiple"] for name, d in dims.items()}
                yield Inspected(symbol, arch, cuda, built["resources"], verdict, True, multiples)


def resources(units: Iterable[Inspected]) -> list[dict[str, Any]]:
    """A row per kernel: resource table, resident warps, matrix instructions, narrow accesses."""
    from tileproof.codegen.occupancy import occupancy
    from tileproof.codegen.resources import MATRIX, Resources

    rows = []
    for unit in units:
        for used in unit.resources:
            table = Resources(**used)
            held = occupancy(table, architecture(unit.arch))
            rows.append(
                {
                    "kernel": unit.symbol,
                    "arch": unit.arch,
                    "verdict": unit.verdict,
                    "matrix": sum(table.sass.get(family, 0) for family in MATRIX[unit.arch]),
                    "narrow": table.narrow,
                    "occupancy": {**asdict(held), "share": held.share},
                    "resources": used,
                }
            )
    return rows


def accesses(units: Sequence[Inspected]) -> list[dict[str, Any]]:
    """A row per instruction on global memory and line; see :class:`codegen.accesses.Access`."""
    from tileproof.codegen.accesses import accesses as find

    rows = []
    with bar("disassembling", len(units)) as advance:
        for unit in units:
            found = find(
                unit.cuda,
                unit.arch,
                contract_fma=unit.contract_fma,
                origins=unit.origins,
                multiples=unit.multiples,
            )
            rows += [{"symbol": unit.symbol, "arch": unit.arch, **a.to_json()} for a in found]
            advance(f"{unit.symbol} {unit.arch}")
    return rows


def figures(row: dict[str, Any]) -> tuple[str, ...]:
    """A row of :func:`resources` as text."""
    used, held = row["resources"], row["occupancy"]
    numbers = (
        used["registers"],
        used["spill_stores"] + used["spill_loads"],
        used["static_smem"] + used["dynamic_smem"],
        f"{held['warps']}/{held['most']}",
        row["matrix"],
        f"{row['narrow']}/{sum(used['widths'].values())}",
        used["instructions"],
        used["cubin_bytes"],
    )
    return (row["arch"], *map(str, numbers), row["verdict"] or "none")


def merged(places: Iterable[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Accesses as text: instruction and count, tensor, bytes, sectors, line, reason. Those of one
    line of the program are one row; a loop unrolled by TileLang has many in the CUDA text."""
    counts: dict[tuple[str, ...], int] = {}
    for place in places:
        key = _cells(place)
        counts[key] = counts.get(key, 0) + place["count"]
    return [(f"{count} {name}", *rest) for (name, *rest), count in counts.items()]


def _cells(place: dict[str, Any]) -> tuple[str, ...]:
    origin = place["origin"]
    # A program's line where it is known, else the one of the CUDA text.
    line = f"{Path(origin['file']).name}:{origin['line']}" if origin else f"cu:{place['line']}"
    return (
        place["instruction"].partition(".")[0],
        place["tensor"] or "?",
        str(place["width"] or "bulk"),
        f"{place['sectors']}/{place['least']}" if place["least"] else "",
        line if place["line"] else "?",
        place["reason"],
    )
