"""tileproof: DeepSeek-V4 kernels, compiled ahead of time, proved, and executed without a GPU."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

# In a checkout (and so in an editable install) the sub-packages are folders of the repository root.
# `kernels/` has no __init__.py there: a regular root package of that name would shadow Hugging
# Face's `kernels` distribution, so setuptools' editable finder cannot map it and this line does.
_ROOT = Path(__file__).resolve().parent.parent
if (_ROOT / "pyproject.toml").is_file() and (_ROOT / "dsl").is_dir():
    __path__.append(str(_ROOT))

_LAZY = {
    "load": ("tileproof.runtime", "load"),
    "ops": ("tileproof.runtime.ops", None),
    "patch": ("tileproof.model", "patch"),
    "register": ("tileproof.model", "register"),
    "prove": ("tileproof.verify", "prove"),
    "sanitize": ("tileproof.sanitizer", "sanitize"),
    "virtual": ("tileproof.codegen.virtual", None),
}

__all__ = ["__version__", *_LAZY]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'tileproof' has no attribute {name!r}")
    module, attribute = _LAZY[name]
    loaded = importlib.import_module(module)
    found = loaded if attribute is None else getattr(loaded, attribute)
    return globals().setdefault(name, found)
