"""``tileproof.ops.mhc_post`` and ``torch.ops.tileproof.mhc_post``: the ops of the active library.

Ops are registered below torch's Python ``custom_op`` wrapper, which alone costs more than twenty
microseconds a call. Each op is defined once per process from its description; which library runs it
is decided at the call, so loading another bundle re-traces nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch

from .errors import check
from .signature import Signature

if TYPE_CHECKING:
    from .loader import Library

_registry = torch.library.Library("tileproof", "FRAGMENT")
_schemas: dict[str, str] = {}
_loaded: list[Library] = []
_chosen: ContextVar[Library | None] = ContextVar("tileproof_library", default=None)


def activate(library: Library) -> None:
    """Make `library` what ops run on wherever :func:`use` chose no other."""
    _loaded[:] = [library]


@contextlib.contextmanager
def use(library: Library) -> Iterator[Library]:
    """Ops called within the block run on `library`."""
    token = _chosen.set(library)
    try:
        yield library
    finally:
        _chosen.reset(token)


def active() -> Library:
    """The library ops run on. Raises RuntimeError when none was loaded."""
    library = _chosen.get() or (_loaded[0] if _loaded else None)
    if library is None:
        raise RuntimeError("got no library, expected one: call tileproof.load(bundle) first")
    return library


def schema(signature: Signature) -> str:
    """The torch schema of an op: inputs, then params and hidden dims as keywords."""
    arguments = [f"Tensor {a.name}" for a in signature.inputs]
    keywords = [f"{k}={v}" for k, v in signature.params.items()]
    types = ["int" if isinstance(v, int) else "float" for v in signature.params.values()]
    options = [f"{kind} {text}" for kind, text in zip(types, keywords, strict=True)]
    options += [f"int? {letter}=None" for letter in signature.hidden]
    if options:
        arguments += ["*", *options]
    results = ", ".join(["Tensor"] * len(signature.outputs))
    if len(signature.outputs) > 1:
        results = f"({results})"
    return f"{signature.stem}({', '.join(arguments)}) -> {results}"


def register(signature: Signature) -> None:
    """Define the torch op, once. Raises BundleError if it exists with another schema."""
    text = schema(signature)
    known = _schemas.get(signature.stem)
    check(
        known in (None, text),
        f"torch op {signature.stem}",
        got=text,
        expected=f"{known} as already registered in this process",
    )
    if known is not None:
        return
    stem, hidden = signature.stem, set(signature.hidden)

    def run(*tensors: torch.Tensor, **options: Any) -> Any:
        signature.refuse_gradients(tensors)
        given = {k: v for k, v in options.items() if v is not None or k not in hidden}
        return active()[stem](*tensors, **given)

    def fake(*tensors: torch.Tensor, **options: Any) -> Any:
        return active()[stem].fake(tensors, options)

    _registry.define(text, tags=[torch.Tag.pt2_compliant_tag])
    for key in ("CPU", "CUDA"):
        _registry.impl(stem, run, key)
    torch.library.register_fake(f"tileproof::{stem}", fake, lib=_registry)
    _schemas[stem] = text


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(name)
    if name not in _schemas:
        have = f"one of {', '.join(sorted(_schemas))}" if _schemas else "a loaded bundle"
        raise AttributeError(f"tileproof.ops: got {name}, expected {have}; see tileproof.load")
    return getattr(torch.ops.tileproof, name)


def __dir__() -> list[str]:
    return sorted(_schemas)
