"""The command-line reference, from the commands themselves: ``docs/cli.md``."""

from __future__ import annotations

import inspect

import typer
from typer.main import get_command

HEAD = """# Commands

Generated from the commands: `python -m tileproof.cli.reference > docs/cli.md` writes it again.
Exit codes: 0 proved or clean, 1 refuted or defect found, 2 alarm, unknown or budget, 3 usage or
environment error.
"""


def text(app: typer.Typer) -> str:
    """The page, in Markdown: every command with its arguments, options and defaults."""
    parts = [HEAD]
    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        parts.append(f"\n## tileproof {name}\n\n{inspect.cleandoc(command.help or '')}\n\n")
        for parameter in command.params:
            is_argument = parameter.param_type_name == "argument"
            shown = (parameter.metavar or parameter.name or "").upper()
            label = f"`{shown}`" if is_argument else f"`{', '.join(parameter.opts)}`"
            words = (getattr(parameter, "help", None) or "").strip()
            parts.append(f"* {label}: {words}" if words else f"* {label}")
            default = parameter.default
            if default not in (None, False) and not callable(default) and not is_argument:
                parts[-1] += f" Default: `{default}`."
            parts[-1] += "\n"
    return "".join(parts)


if __name__ == "__main__":
    from tileproof.cli import app

    print(text(app), end="")
