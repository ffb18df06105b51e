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
from typing import Any

from tileproof.dsl import check

# Class → fingerprints of its forward; function → of itself. A new version of transformers with
# another fingerprint needs a look at what changed; where the meaning did not, it is added here.
KNOWN = {
    "DeepseekV4RMSNorm": ("2c29d28177dec537",),
    "DeepseekV4UnweightedRMSNorm": ("6c728b0f2e73c625",),
    "DeepseekV4HyperConnection": ("9b2c376b12392174", "6b0e6de83330b777"),
    "DeepseekV4DecoderLayer": ("f2482f81a799aa62",),
    "DeepseekV4HyperHead": ("30e0ab0442a3cd91",),
    "DeepseekV4TopKRouter": ("d61f7ec728319d20",),
    "DeepseekV4HashRouter": ("16bab18db40b40fe",),
    "DeepseekV4Model": ("57ee30414805a22e",),
    "DeepseekV4Attention": ("8b08aede1a61bdb6",),
    "DeepseekV4CSACompressor": ("915629312721b1d9",),
    "DeepseekV4HCACompressor": ("eacba540e415c382",),
    "DeepseekV4Indexer": ("a5ff31d274b3adcf",),
    "DeepseekV4IndexerScorer": ("f873b7fde5790dbb",),
    "DeepseekV4GroupedLinear": ("64938f83feae9889",),
    "DeepseekV4RotaryEmbedding": ("4799646e31902648",),
    "DeepseekV4Experts": ("02d841dd901211cb",),
    "DeepseekV4Experts._apply_gate": ("8b2f11e3449159e1",),
    "apply_rotary_pos_emb": ("68404f7371e74891",),
    "rotate_half": ("75849d0c69be6a9b",),
    "eager_attention_forward": ("117b086b1d739f7d",),
    "Linear": ("30fc7eee6d265020",),
}


def fingerprint(of: Any) -> str:
    """A hash of what a function, or ``of.forward``, does: its parameters' names and statements."""
    of = getattr(of, "forward", of)
    source = textwrap.dedent(inspect.getsource(of))
    function = ast.parse(source).body[0]
    assert isinstance(function, ast.FunctionDef)
    body = function.body
    if ast.get_docstring(function) is not None:
        body = body[1:]
    lines = [", ".join(inspect.signature(of).parameters), *map(ast.unparse, body)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def check_known(of: Any) -> None:
    """Raise ContractError if the installed transformers computes `of`, a class by its forward or a
    function, in a way unknown here."""
    import transformers

    name = of.__qualname__
    check(
        fingerprint(of) in KNOWN[name],
        f"{name}{'.forward' if isinstance(of, type) else ''} of transformers"
        f" {transformers.__version__}",
        got=f"a text ({fingerprint(of)}) this tileproof was not written for",
        expected=f"one of {', '.join(KNOWN[name])}; leave it out of ops=[...] or install"
        " the transformers that pyproject.toml names",
    )
