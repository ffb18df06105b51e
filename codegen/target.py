"""Find a user's kernel: ``FILE.py:NAME`` and arguments → a TileLang prim_func."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tileproof.dsl import ContractError, assume, check
from tileproof.dsl.facts import noted

from .lower import PASS_CONFIGS, tvm_target

# Attribute of a prim_func in eager style: what its body says by T.annotate_pass_configs.
_OWN_CONFIGS = "tilelang_pass_configs"


@dataclass(frozen=True)
class Target:
    """A user's kernel by name, as another process can find it again."""

    text: str
    args: tuple[tuple[str, Any], ...] = ()

    def resolve(self, arch_name: str | None = None) -> Any:
        """The prim_func; see :func:`resolve_target`."""
        return resolve_target(self.text, dict(self.args), arch_name)

    @property
    def file(self) -> Path:
        """The file that holds it."""
        return split(self.text)[0]

    def line(self) -> int:
        """Where the file defines it, 1 if that cannot be seen."""
        name = split(self.text)[1]
        for node in ast.parse(self.file.read_text()).body:
            names = [getattr(node, "name", None)]
            names += [getattr(t, "id", None) for t in getattr(node, "targets", [])]
            if name in names:
                return node.lineno
        return 1


def split(target: str) -> tuple[Path, str]:
    """``FILE.py:NAME`` in its parts."""
    path, _, name = target.rpartition(":")
    check(path.endswith(".py") and name, "kernel", got=repr(target), expected="FILE.py:NAME")
    return Path(path), name


def is_target(text: str) -> bool:
    """Whether a command-line word means a file's kernel rather than an op of the library."""
    return ".py:" in text


def resolve_target(
    target: str, args: Mapping[str, Any] | None = None, arch_name: str | None = None
) -> Any:
    """The prim_func that ``FILE.py:NAME`` means.

    NAME is a ``T.prim_func``, a ``@tilelang.jit`` function or a factory that returns either; `args`
    are the arguments of the latter two, by name. A factory that asks TileLang for its target while
    it is traced gets `arch_name`. Raises ContractError with one sentence otherwise.
    """
    file, name = split(target)
    path = str(file)
    check(file.is_file(), "kernel file", got=path, expected="a file that exists")
    module = _import(file)
    kernels = sorted(n for n, v in vars(module).items() if _is_kernel(v, module))
    expected = f"one of {', '.join(kernels)}" if kernels else "a kernel"
    check(hasattr(module, name), f"kernel in {path}", got=name, expected=expected)
    return as_prim_func(getattr(module, name), args, target, arch_name)


def as_prim_func(
    kernel: Any,
    args: Mapping[str, Any] | None = None,
    what: str = "kernel",
    arch_name: str | None = None,
) -> Any:
    """A prim_func from itself, a jit function or a factory, called with `args` for `arch_name`.

    A jit function's pass_configs travel with it, so it is lowered as its author compiles it. The
    tensors of one in eager style are no arguments; the sizes it names by ``T.const`` are.
    """
    with tvm_target(arch_name) if arch_name is not None else contextlib.nullcontext():
        return _traced(kernel, dict(args or {}), what)


def _traced(kernel: Any, given: dict[str, Any], what: str) -> Any:
    from tilelang import tvm

    configs: dict[str, Any] = {}
    facts: dict[str, Any] = {}
    for _ in range(3):  # a factory may return a jit function
        kernel = getattr(kernel, "jit_impl", kernel)  # the arguments are given: nothing to tune
        if isinstance(kernel, tvm.tirx.PrimFunc):
            check(not given, f"arguments of {what}", got=sorted(given), expected="none")
            configs = {**pass_configs(kernel.attrs.get(_OWN_CONFIGS)), **configs}
            if configs:
                kernel = kernel.with_attr(PASS_CONFIGS, configs)
            return assume(**facts)(kernel) if facts else kernel
        check(callable(kernel), what, got=type(kernel).__name__, expected="a TileLang kernel")
        build = getattr(kernel, "get_tir", None)
        function = getattr(kernel, "func", kernel) if build is not None else kernel
        _fits(function, given, what)
        if build is not None:
            configs = pass_configs(kernel.pass_configs)
        facts = {**noted(kernel), **facts}
        called = given
        try:
            kernel, given = (build or kernel)(**given), {}
        except Exception as error:
            detail = next(iter(str(error).strip().splitlines()), "")
            text = f"{type(error).__name__}: {detail}".rstrip(": ")
            raise ContractError(f"{what}: got {text}, expected a kernel from it") from error
        _consts(function, called, what)
    raise ContractError(f"{what}: got {type(kernel).__name__}, expected a prim_func")


def pass_configs(given: Mapping[Any, Any] | None) -> dict[str, Any]:
    """Compile options by their names; TileLang's keys may be members of its PassConfigKey."""
    return {str(getattr(k, "value", k)): v for k, v in dict(given or {}).items()}


def parse_args(pairs: list[str]) -> dict[str, Any]:
    """``["n=128", "dtype=bfloat16"]`` → Python values; what is no literal is text."""
    out: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        check(bool(key and equals), "--arg", got=repr(pair), expected="key=value")
        try:
            out[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            out[key] = value
    return out


def _fits(function: Any, given: Mapping[str, Any], what: str) -> None:
    tensors = getattr(function, "tensor_args", {})  # of a jit function in eager style
    parameters = {
        n: p for n, p in inspect.signature(function).parameters.items() if n not in tensors
    }
    missing = [
        n
        for n, p in parameters.items()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        if n not in given
    ]
    check(not missing, f"arguments of {what}", got=sorted(given), expected=f"also {missing}")
    if not tensors and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        unknown = sorted(set(given) - set(parameters))
        check(not unknown, f"arguments of {what}", got=unknown, expected=f"among {[*parameters]}")


def _consts(function: Any, given: Mapping[str, Any], what: str) -> None:
    """Refuse an argument that is neither a parameter nor a ``T.const``: TileLang drops it."""
    tensors = getattr(function, "tensor_args", {})
    if tensors:
        templates = function.p1_cache.values()
        consts = {name for t in templates for *_, name in (t.matcher or {}).values()}
        known = [n for n in inspect.signature(function).parameters if n not in tensors]
        unknown = sorted(set(given) - {*known, *consts})
        expected = f"among {[*known, *sorted(consts)]}"
        check(not unknown, f"arguments of {what}", got=unknown, expected=expected)


def _import(file: Path) -> Any:
    """Run the file as a module of its own, with its folder importable as for a script."""
    absolute = file.resolve()
    digest = hashlib.sha256(str(absolute).encode()).hexdigest()[:12]
    spec = importlib.util.spec_from_file_location(f"_tileproof_target_{digest}", absolute)
    assert spec is not None and spec.loader is not None  # the suffix is .py
    module = importlib.util.module_from_spec(spec)
    # TileLang reads the source of the functions it traces through sys.modules.
    sys.modules[spec.name] = module
    sys.path.insert(0, str(absolute.parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        detail = f"{type(error).__name__}: {error}".splitlines()[0]
        check(False, f"import of {file}", got=detail, expected="a module that imports")
    finally:
        sys.path.remove(str(absolute.parent))
    return module


def _is_kernel(value: Any, module: Any) -> bool:
    own = getattr(value, "__module__", None) == module.__name__
    return type(value).__name__ in ("PrimFunc", "JITImpl") or (inspect.isfunction(value) and own)
