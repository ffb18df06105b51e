"""``tileproof doctor``: what this machine can do, and the commands that mend what it cannot."""

from __future__ import annotations

import json
import textwrap
from typing import Annotated

import typer

from tileproof.dsl import check

BROKEN = 3


def run(
    needed: Annotated[
        str, typer.Option("--for", help="run,gpu,virtual,build,prove,patch,plot,bench")
    ] = "run",
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> int:
    """Show what this machine can run, build and prove, what is in the cache, which GPUs there are,
    and for each problem the command that mends it. Exit code: 0 if all that --for names works,
    else 3."""
    from tileproof.codegen.doctor import USES, able, examine

    wanted = [name.strip() for name in needed.split(",")]
    unknown = [name for name in wanted if name not in USES]
    check(not unknown, "--for", got=", ".join(unknown), expected=f"among {', '.join(USES)}")
    findings = examine()
    can = able(findings)
    code = 0 if all(can[name] for name in wanted) else BROKEN
    if as_json:
        print(json.dumps({"can": can, "findings": [vars(f) for f in findings]}, indent=1))
        return code
    width = max(len(f.item) for f in findings)
    for f in findings:
        head = f"{'ok' if f.ok else '--'} {f.item:{width}} "
        print(textwrap.fill(f.detail, 80, initial_indent=head, subsequent_indent=" " * len(head)))
        if not f.ok:
            print(f"{' ' * len(head)}{f.fix}")
    print()
    for words, truth in (("ready for", True), ("not for", False)):
        if names := [name for name, works in can.items() if works is truth]:
            print(f"{words} {', '.join(names)}")
    return code
