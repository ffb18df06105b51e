"""The campaign of docs/proofs.md: bugs seeded in the library and in the programs of other styles.

``python -m tests.campaign -o FILE`` appends what became of each mutant to a file of JSON lines, one
line a kernel; a kernel that is there already is not asked again. ``--table FILE`` prints the table.
"""

from __future__ import annotations

import argparse
import json
import time
import zlib
from pathlib import Path
from typing import Any

from tests.runtime.virtual.catalogue import FOLDER, PROGRAMS
from tileproof.cli.mutate import outcomes_of
from tileproof.dsl import load_library
from tileproof.mutation import FATES, Outcome, table

COLUMNS = ("class", "seeded", *FATES[:5], "confirmed", *FATES[5:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--most", type=int, default=3, help="mutants of a class per kernel")
    parser.add_argument("--arch", nargs="+", default=["sm_80", "sm_90a"])
    parser.add_argument("--only", nargs="*", default=[], help="kernels; default: all")
    parser.add_argument("-o", "--output", type=Path, help="append to this file")
    parser.add_argument("--table", type=Path, help="print the table of this file")
    given = parser.parse_args()
    if given.table:
        print(markdown(read(given.table)))
        return
    done = {(r["name"], r["arch"]) for r in read(given.output)}
    names = sorted([*PROGRAMS, *load_library()], key=lambda name: zlib.crc32(name.encode()))
    for name in given.only or names:  # programs and ops mixed
        for arch in given.arch:
            if (name, arch) in done:
                continue
            record = one(name, arch, given.most)
            with given.output.open("a") as file:
                file.write(json.dumps(record) + "\n")
            words = f"{len(record['mutants'])} in {record['seconds']:.0f} s {record['unknown']}"
            print(f"{name} {arch}: {words}", flush=True)


def one(name: str, arch: str, most: int) -> dict[str, Any]:
    """Everything about the mutants of one kernel."""
    start = time.process_time()
    target, args, facts = name, [], {}
    if name in PROGRAMS:
        program = PROGRAMS[name]
        target, facts = f"{FOLDER}/{program.target}", dict(program.facts)
        args = [f"{key}={value}" for key, value in program.args.items()]
    found, reason = outcomes_of(target, arch, args, facts, [], most, True)
    seconds = round(time.process_time() - start, 1)
    return {"name": name, "arch": arch, "seconds": seconds, "unknown": reason, "mutants": found}


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def markdown(records: list[dict[str, Any]]) -> str:
    """The table, the kernels it is of, and what a reader should look at one by one."""
    outcomes = [Outcome(**o) for record in records for o in record["mutants"]]
    rows = table(outcomes)
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    lines += [f"| {' | '.join(str(row[c]) for c in COLUMNS)} |" for row in rows]
    for key, value in rows[-1].items():
        if key.startswith("by_"):
            lines.append(f"{key}: {value:.1%}" if value is not None else f"{key}: no bugs")
    for arch in dict.fromkeys(r["arch"] for r in records):
        names = sorted(r["name"] for r in records if r["arch"] == arch and r["mutants"])
        lines.append(f"{arch}, {len(names)}: {', '.join(names)}")
    lines += [f"unknown: {r['name']} {r['arch']}: {r['unknown']}" for r in records if r["unknown"]]
    odd = ("unseen", "undecided", "sanitize", "escaped")
    for o in sorted(outcomes, key=lambda o: o.fate):
        if o.fate in odd or (o.fate == "values" and o.device is False):
            what = "values alone" if o.fate == "values" else o.fate
            words = f"{o.kernel} {o.arch} {o.mutant} {o.site[:80]}: {o.why[:160]}"
            lines.append(f"{what}: {words}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
