"""The command line: one file per verb. Exit codes: 0 proved or clean, 1 refuted or defect found,
2 alarm, unknown or budget, 3 usage or environment error."""

from __future__ import annotations

import sys

import click
import typer

from . import build, doctor, inspect, list, verify

app = typer.Typer(
    name="tileproof",
    help="DeepSeek-V4 kernels: compiled ahead of time, proved, executed without a GPU.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for verb in (list, build, verify, inspect, doctor):
    app.command(name=verb.__name__.rsplit(".", 1)[-1])(verb.run)

USAGE = 3


def main() -> None:
    """Entry point of the ``tileproof`` command."""
    try:
        code = app(standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as shown:
        print(shown.format_message(), file=sys.stderr)
        code = USAGE
    except click.ClickException as error:
        print(f"tileproof: {error.format_message()}", file=sys.stderr)
        code = USAGE
    except (ValueError, RuntimeError, OSError) as error:
        # The library's errors are one sentence each; a traceback would bury it.
        print(f"tileproof: {error}", file=sys.stderr)
        code = USAGE
    except (KeyboardInterrupt, click.Abort):
        print("tileproof: interrupted", file=sys.stderr)
        code = 130
    sys.exit(code or 0)
