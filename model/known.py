"""Which forwards of transformers' DeepSeek-V4 the replacements are written for.

A replacement computes what one particular source text computes. Another version of transformers
may compute something else under the same signature, and a model that is silently a little wrong is
the worst outcome; so the text itself is compared, layout and comments aside.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import textwrap

from tileproof.dsl import check

# Class → fingerprints of its forward. A new version of transformers with another fingerprint needs
# a look at what changed; where the meaning did not, its fingerprint is added here.
KNOWN = {
    "DeepseekV4RMSNorm": ("2c29d28177dec537",),
    "DeepseekV4UnweightedRMSNorm": ("6c728b0f2e73c625",),
    "DeepseekV4HyperConnection": ("9b2c376b12392174", "6b0e6de83330b777"),
    "DeepseekV4DecoderLayer": ("f2482f81a799aa62",),
    "DeepseekV4HyperHead": ("30e0ab0442a3cd91",),
    "DeepseekV4TopKRouter": ("d61f7ec728319d20",),
    "DeepseekV4HashRouter": ("16bab18db40b40fe",),
}


def fingerprint(cls: type) -> str:
    """A hash of what ``cls.forward`` does: its parameters' names and its statements."""
    source = textwrap.dedent(inspect.getsource(cls.forward))
    function = ast.parse(source).body[0]
    assert isinstance(function, ast.FunctionDef)
    body = function.body
    if ast.get_docstring(function) is not None:
        body = body[1:]
    lines = [", ".join(inspect.signature(cls.forward).parameters), *map(ast.unparse, body)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def check_known(cls: type) -> None:
    """Raise ContractError if the installed transformers computes `cls` in a way unknown here."""
    import transformers

    check(
        fingerprint(cls) in KNOWN[cls.__name__],
        f"{cls.__name__}.forward of transformers {transformers.__version__}",
        got=f"a text ({fingerprint(cls)}) this tileproof was not written for",
        expected=f"one of {', '.join(KNOWN[cls.__name__])}; leave it out of ops=[...] or install"
        " the transformers that pyproject.toml names",
    )
