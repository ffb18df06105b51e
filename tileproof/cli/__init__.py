"""The command line: one file per verb. Exit codes: 0 proved or clean, 1 refuted or defect found,
2 alarm, unknown or budget, 3 usage or environment error."""

from __future__ import annotations

import logging
import sys

import typer

from . import bench, build, doctor, inspect, list, mutate, sanitize, verify

app = typer.Typer(
    name="tileproof",
    help="DeepSeek-V4 kernels: compiled ahead of time, proved, executed without a GPU.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for verb in (list, build, verify, sanitize, mutate, inspect, bench, doctor):
    app.command(name=verb.__name__.rsplit(".", 1)[-1])(verb.run)

USAGE = 3
# Typer carries a copy of click in some versions and imports it in others.
_UsageError = typer.BadParameter.__base__ or typer.BadParameter


def main() -> None:
    """Entry point of the ``tileproof`` command."""
    # A kernel that does not build is reported below; TileLang would print its generated closure.
    logging.disable(logging.CRITICAL)
    try:
        code = app(standalone_mode=False)
    except _UsageError as error:
        if words := error.format_message():  # type: ignore[attr-defined]
            print(f"tileproof: {words}", file=sys.stderr)
        code = USAGE
    except (ValueError, TypeError, RuntimeError, OSError, ImportError) as error:
        # The library's errors are one sentence each; a traceback would bury it.
        print(f"tileproof: {error}", file=sys.stderr)
        code = USAGE
    except (KeyboardInterrupt, typer.Abort):
        print("tileproof: interrupted", file=sys.stderr)
        code = 130
    sys.exit(code or 0)
