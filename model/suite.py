"""pytest plugin: every DeepSeek-V4 model that transformers' own tests make is patched once made.

At the root of a checkout of transformers::

    python -m pytest -p tileproof.model.suite tests/models/deepseek_v4/test_modeling_deepseek_v4.py

Models run on the ``reference`` backend, whose ops have gradients. docs/model.md lists what passes.
"""

from __future__ import annotations

import functools
from typing import Any

from transformers.models.deepseek_v4 import modeling_deepseek_v4 as hf

from .layers import REPLACEMENTS, Patched
from .patch import patch


def pytest_configure() -> None:
    """Wrap the constructors; of models within models the outermost is patched."""
    building: list[Any] = []
    for cls in (hf.DeepseekV4Model, hf.DeepseekV4ForCausalLM):
        cls.__init__ = _patching(cls.__init__, building)


def _patching(construct: Any, building: list[Any]) -> Any:
    @functools.wraps(construct)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        if isinstance(self, Patched):
            return  # `Patched.__new__` made and patched it, and Python initialises it once more
        building.append(self)
        try:
            construct(self, *args, **kwargs)
        finally:
            building.pop()
        if not building:
            ops = [
                name
                for name, replacement in REPLACEMENTS.items()
                if all(getattr(self.config, k) == v for k, v in replacement.REQUIRES.items())
            ]  # the tests' own config has other experts than DeepSeek-V4: gelu
            patch(self, "reference", ops=ops, on_missing="reference")

    return init
