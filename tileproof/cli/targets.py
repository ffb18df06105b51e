"""What the words on a command line mean: ops, files, architectures, domains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from tileproof.dsl import ALL, Specialization, arch, check, get

# Options that verbs on kernels share.
Kernels = Annotated[
    list[str] | None,
    typer.Argument(metavar="[OP|FILE.py:NAME]...", help="Default: the whole library."),
]
Arch = Annotated[str | None, typer.Option(help="sm_80,sm_90a,…; default: all.")]
Args = Annotated[list[str] | None, typer.Option(help="NAME=VALUE for a factory.")]
FactsFile = Annotated[Path | None, typer.Option(help="Facts about a user's kernel, JSON.")]


def archs(text: str | None) -> tuple[str, ...]:
    """``"sm_80,sm_90a"`` as names, all five if None. Errors list the known ones."""
    if text is None:
        return ALL
    return tuple(arch(name.strip()).name for name in text.split(","))


def pairs(options: list[str], what: str) -> dict[str, str]:
    """``["k=v", …]`` as a dict."""
    for option in options:
        check("=" in option, what, got=repr(option), expected="NAME=VALUE")
    return dict(option.split("=", 1) for option in options)


def domains(options: list[str]) -> dict[str, list[int]]:
    """``--dim m=0..1048576`` (or ``m=65``) options as inclusive ranges."""
    found = {}
    for name, text in pairs(options, "--dim").items():
        ends = text.split("..")
        valid = len(ends) <= 2 and all(e.strip().lstrip("-").isdigit() for e in ends)
        check(valid, f"--dim {name}", got=repr(text), expected="N or LO..HI")
        found[name] = [int(ends[0]), int(ends[-1])]
    return found


def facts(path: Path | None, dims: list[str]) -> dict[str, Any] | None:
    """Facts of a user's kernel from ``--facts F.json`` and ``--dim``; None if there are none."""
    found: dict[str, Any] = {}
    if path is not None:
        try:
            found = json.loads(path.read_text())
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: got {error}, expected one JSON object") from None
        check(isinstance(found, dict), str(path), got=type(found).__name__, expected="an object")
    ranges = domains(dims)
    if ranges:
        found["dims"] = {**found.get("dims", {}), **ranges}
    return found or None


def config(path: Path) -> dict[str, Any]:
    """A Hugging Face config from a model folder or a ``config.json``."""
    file = path / "config.json" if path.is_dir() else path
    check(file.is_file(), "--model", got=str(path), expected="a model folder or its config.json")
    try:
        found = json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}: got {error}, expected a JSON object") from None
    kind = found.get("model_type") if isinstance(found, dict) else None
    check(kind == "deepseek_v4", f"{file}: model_type", got=repr(kind), expected="'deepseek_v4'")
    return found


def specs(names: list[str], model: Path | None) -> list[Specialization]:
    """Specializations of the named ops (all if none) at the sizes of `model` or the defaults."""
    from tileproof.codegen.build import default_specs, specs_for_model

    wanted = {get(name).name for name in names}
    every = default_specs() if model is None else specs_for_model(config(model))
    return [s for s in every if not wanted or s.op.name in wanted]
