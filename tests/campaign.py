"""The campaign of docs/proofs.md: bugs seeded in the library and in the programs of other styles.

``python -m tests.campaign -o FILE`` writes what became of each mutant and the table, as JSON, after
every kernel. Verdicts are kept in the cache: a second run after a kill goes on where the first was.
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
from tileproof.mutation import Outcome, table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--most", type=int, default=3, help="mutants of a class per kernel")
    parser.add_argument("--arch", nargs="+", default=["sm_80", "sm_90a"])
    parser.add_argument("--only", nargs="*", default=[], help="kernels; default: all")
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args()
    outcomes: list[dict[str, Any]] = []
    unknown: dict[str, str] = {}
    names = sorted([*PROGRAMS, *load_library()], key=lambda name: zlib.crc32(name.encode()))
    for name in given.only or names:  # programs and ops mixed
        for arch in given.arch:
            start = time.time()
            target, args, facts = name, [], {}
            if name in PROGRAMS:
                program = PROGRAMS[name]
                target, facts = f"{FOLDER}/{program.target}", dict(program.facts)
                args = [f"{key}={value}" for key, value in program.args.items()]
            found, reason = outcomes_of(target, arch, args, facts, [], given.most, True)
            outcomes += found
            if reason:
                unknown[f"{name} {arch}"] = reason
            rows = table(Outcome(**o) for o in outcomes)
            report = {"most": given.most, "table": rows, "unknown": unknown, "mutants": outcomes}
            given.output.write_text(json.dumps(report, indent=1) + "\n")
            print(
                f"{name} {arch}: {len(found)} in {time.time() - start:.0f} s {reason}", flush=True
            )
            for o in found:
                if o["fate"] in ("escaped", "sanitize", "undecided"):
                    print(f"  {o['fate']} {o['mutant']} {o['site'][:80]} | {o['why'][:160]}")


if __name__ == "__main__":
    main()
