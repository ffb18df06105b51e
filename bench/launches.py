"""Launches of one decode step: transformers' eager model, patched, and the official network.

Counted on the CPU, the same at any widths. Of torch it is every operator below autograd that
neither gives a view nor only allocates: what would launch a kernel. Of ours it is every call of an
op, one kernel each, and whatever torch does between them; lists of rows are computed on the host,
where they launch nothing, and are counted all the same.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

PROMPT = 256  # tokens before the step
VOCABULARY = 256

# Operators that are no view by their schema and launch nothing either.
_ALLOCATE = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")
FREE = (*_ALLOCATE, "_local_scalar_dense", "lift_fresh", "_unsafe_view", "detach_", "scalar_tensor")


class Launches(TorchDispatchMode):
    """Counts what would launch while it is entered.

    Attributes:
        torch_ops: how often each operator of torch ran.
        kernels: how often each op of ours ran.
    """

    def __init__(self) -> None:
        super().__init__()
        self.torch_ops: Counter[str] = Counter()
        self.kernels: Counter[str] = Counter()
        self._inside = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        if not (self._inside or is_view(func) or name in FREE):
            self.torch_ops[name] += 1
        return out

    def counted(self, library: Any) -> Any:
        """`library`, whose ops count as one launch each, whatever they consist of."""
        return _Counted(self, library)


class _Counted:
    def __init__(self, launches: Launches, library: Any) -> None:
        self._launches, self._library = launches, library

    def __getattr__(self, stem: str) -> Callable[..., Any]:
        op, launches = getattr(self._library, stem), self._launches

        def call(*tensors: torch.Tensor, **params: Any) -> Any:
            launches.kernels[stem] += 1
            launches._inside = True
            try:
                return op(*tensors, **params)
            finally:
                launches._inside = False

        return call


def is_view(func: Any) -> bool:
    """Whether an operator only gives another view of an argument."""
    aliases = [r.alias_info for r in func._schema.returns]
    return bool(aliases) and all(a is not None and not a.is_write for a in aliases)


def measure() -> list[dict[str, Any]]:
    """A row for each network of the same five layers: the step behind a prompt."""
    return [_row(name, count()) for name, count in SIDES.items()]


def _row(name: str, launches: Launches) -> dict[str, Any]:
    kernels, others = launches.kernels.total(), launches.torch_ops.total()
    return {"case": name, "kernels": kernels, "torch": others, "launches": kernels + others}


def _ids() -> torch.Tensor:
    return torch.randint(VOCABULARY, (1, PROMPT + 1), generator=torch.Generator().manual_seed(0))


def transformers_step(patched: bool = False) -> Launches:
    """Of transformers' tiny model, with our kernels or without."""
    import tileproof
    from tileproof.model.checkpoint import tiny_model

    model, launches, ids = tiny_model(0, VOCABULARY), Launches(), _ids()
    if patched:
        tileproof.patch(model, "reference")
        for module in model.modules():
            kernels = getattr(module, "_tileproof", None)
            if kernels is not None and not isinstance(kernels.library, _Counted):
                kernels.library = launches.counted(kernels.library)
    with torch.no_grad():  # inference mode would not take composite operators apart
        cache = model(ids[:, :-1], use_cache=True).past_key_values
        launches.kernels.clear()
        with launches:
            model(ids[:, -1:], past_key_values=cache)
    return launches


def official_step() -> Launches:
    """Of the network in official precision, with the same layers."""
    from tileproof.model.cache import Chunk
    from tileproof.model.checkpoint import write_tiny_official_checkpoint
    from tileproof.model.deepseek_v4 import DeepseekV4

    launches, ids = Launches(), _ids()[0]
    with tempfile.TemporaryDirectory() as folder:
        path = write_tiny_official_checkpoint(Path(folder), 0, VOCABULARY)
        model = DeepseekV4.load(path, "reference")
    model.run.library = launches.counted(model.run.library)
    with torch.no_grad():  # inference mode would not take composite operators apart
        cache = model.cache(slots=1, tokens=PROMPT + 128)
        model.forward([Chunk(0, 0, PROMPT)], ids[:-1], cache)
        launches.kernels.clear()
        with launches:
            model.forward([Chunk(0, PROMPT, 1)], ids[-1:], cache)
    return launches


SIDES: dict[str, Callable[[], Launches]] = {
    "transformers eager": transformers_step,
    "patched": lambda: transformers_step(patched=True),
    "official precision": official_step,
}
