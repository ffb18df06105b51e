"""What the words on a command line mean: ops, files, architectures, domains."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from tileproof.dsl import ALL, Facts, Specialization, arch, check, get

# Options that verbs on kernels share.
Kernels = Annotated[
    list[str] | None,
    typer.Argument(metavar="[OP|FILE.py:NAME]...", help="Default: the whole library."),
]
Arch = Annotated[str | None, typer.Option(help="sm_80,sm_90a,…; default: all.")]
Args = Annotated[list[str] | None, typer.Option(help="NAME=VALUE for a factory.")]
FactsFile = Annotated[Path | None, typer.Option(help="Facts about a user's kernel, JSON.")]
Dims = Annotated[
    list[str] | None, typer.Option(help="NAME=N, NAME=LO..HI or NAME=LO..HI:MULTIPLE.")
]
OneFact = Annotated[
    list[str] | None,
    typer.Option(help="strides:X=P,1 values:Idx=-1..T-1 written:y=once inout:y multiples:n=8 …"),
]


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


def domains(options: list[str]) -> tuple[dict[str, list[int]], dict[str, int]]:
    """``--dim m=0..1048576``, ``m=65`` or ``k=128..8192:128`` as inclusive ranges and multiples."""
    ranges, multiples = {}, {}
    for name, text in pairs(options, "--dim").items():
        span, colon, step = text.partition(":")
        ends = span.split("..")
        numbers = [*ends, step] if colon else ends
        valid = len(ends) <= 2 and all(_INTEGER.fullmatch(n.strip()) for n in numbers)
        expected = "N or LO..HI or LO..HI:MULTIPLE"
        check(valid, f"--dim {name}", got=repr(text), expected=expected)
        lo, hi = ranges[name] = [int(ends[0]), int(ends[-1])]
        check(lo <= hi, f"--dim {name}", got=repr(text), expected="LO <= HI")
        if colon:
            # 100..900:64 would mean 100, 164, … in Python, and the multiples of 64 to others.
            whole = int(step) > 0 and lo % int(step) == 0
            check(whole, f"--dim {name}", got=repr(text), expected="LO to be a multiple of it")
            multiples[name] = int(step)
    return ranges, multiples


_INTEGER = re.compile(r"-?\d+")
# How the value of one --fact KEY:NAME=VALUE is read; keys without a value are lists of names.
_FACTS: dict[str, Callable[[str], Any]] = {
    "values": lambda text: [_bound(e) for e in text.split("..")],
    "multiples": lambda text: _bound(text),
    "none": lambda text: _bound(text),
    "align": lambda text: _bound(text),
    "strides": lambda text: [[_bound(e) for e in text.split(",")]],
    "written": str,
}
_NAMES = ("inout", "monotone", "distinct", "batch")


def _bound(text: str) -> int | str:
    return int(text) if _INTEGER.fullmatch(text.strip()) else text.strip()


def add_facts(found: dict[str, Any], options: Sequence[str]) -> None:
    """Add ``--fact KEY:NAME=VALUE`` options to facts; strides of a tensor may be given twice."""
    for option in options:
        head, equals, value = option.partition("=")
        key, _, name = head.partition(":")
        known = (key in _FACTS and equals) or (key in _NAMES and not equals)
        expected = f"{'/'.join(_FACTS)}:NAME=VALUE or {'/'.join(_NAMES)}:NAME"
        check(bool(known and name), "--fact", got=repr(option), expected=expected)
        if key in _NAMES:
            found[key] = [*found.get(key, []), name]
            continue
        entry = found.setdefault(key, {})
        more = entry.get(name, []) if key == "strides" else None
        entry[name] = _FACTS[key](value) if not more else more + _FACTS[key](value)


def facts(path: Path | None, dims: list[str], options: Sequence[str] = ()) -> dict[str, Any]:
    """Facts of a user's kernel from ``--facts F.json``, ``--dim`` and ``--fact``."""
    found: dict[str, Any] = {}
    if path is not None:
        try:
            found = json.loads(path.read_text())
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: got {error}, expected one JSON object") from None
        check(isinstance(found, dict), str(path), got=type(found).__name__, expected="an object")
    ranges, multiples = domains(dims)
    for key, more in (("dims", ranges), ("multiples", multiples)):
        if more:
            found[key] = {**found.get(key, {}), **more}
    add_facts(found, options)
    Facts.from_dict(found, str(path) if path is not None else "--fact")
    return found


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
    every = default_specs() if model is None else specs_for_model(config(model), ops=wanted)
    return [s for s in every if not wanted or s.op.name in wanted]


def specs_and_kernels(
    words: list[str],
    model: Path | None,
    archs: Sequence[str],
    args: list[str],
    facts_file: Path | None,
    dims: list[str],
) -> list[Specialization]:
    """As :func:`specs`, with a user's kernels among the words; options on those need one."""
    from tileproof.codegen.target import Target, is_target, parse_args
    from tileproof.codegen.user import specialize

    files = [word for word in words if is_target(word)]
    given = bool(args or facts_file or dims)
    check(bool(files) or not given, "--arg, --facts, --dim", got="given", expected="FILE.py:NAME")
    names = [word for word in words if not is_target(word)]
    found = specs(names, model) if names or not files else []
    known = facts(facts_file, dims)
    values = tuple(parse_args(args).items())
    found += [specialize(Target(word, values), known, archs[0]) for word in files]
    symbols = [spec.symbol for spec in found]
    twice = sorted({s for s in symbols if symbols.count(s) > 1})
    check(not twice, "kernels", got=f"{', '.join(twice)} twice", expected="a name for each")
    return found


def writable(path: Path) -> None:
    """Refuse a report's path before the work rather than after it."""
    check(path.parent.is_dir(), "report", got=str(path), expected="a path in a folder that exists")
    check(not path.is_dir(), "report", got=f"the folder {path}", expected="a file")


def meant(named: Iterable[str], known: set[str]) -> None:
    """Refuse a --dim that no kernel has: a typing error would be a proof about other sizes."""
    wrong = sorted(set(named) - known)
    expected = f"among {sorted(known)}" if known else "none"
    check(not wrong or not known, "--dim", got=", ".join(wrong), expected=expected)
