"""The reference page, written from the declarations: ``python -m tileproof.dsl.page``."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

from .registry import load_library
from .spec import Dim, Op, Tensor

_HEAD = """# Ops

Written from the declarations by `python -m tileproof.dsl.page > docs/ops.md`; a test keeps it so.
Every op is a torch op (`torch.ops.tileproof.<family>_<op>`) once a bundle is loaded. Tensors are
row-major, and contiguous where no strides are given; letters are dims, `act` and other lower-case
types are chosen per build.
"""


def page(ops: Iterable[Op]) -> str:
    """Markdown for `ops`, grouped by family."""
    parts = [_HEAD]
    for family, members in groupby(ops, key=lambda op: op.name.split("/")[0]):
        parts.append(f"\n## {family}\n")
        parts += [_section(op) for op in members]
    return "".join(parts)


def _section(op: Op) -> str:
    lines = [
        f"\n### {op.name}\n",
        f"{op.doc}\n",
        "| tensor | role | shape | type |",
        "|---|---|---|---|",
    ]
    lines += [f"| `{a.name}` | {_role(a)} | {_layout(a)} | {a.dtype} |" for a in op.args]
    lines += ["", "| dim | domain | fixed |", "|---|---|---|"]
    lines += [f"| {letter} | {_domain(d)} | {_fixed(d)} |" for letter, d in op.dims.items()]
    notes = [f"`{k}` is one of {', '.join(v)}" for k, v in op.types.items()]
    notes += [f"`{k}` defaults to {v!r}" for k, v in op.params.items()]
    if op.reduces:
        notes.append(f"sums over {', '.join(op.reduces)} in one fixed order")
    archs = sorted({a for v in op.variants for a in v.archs})
    notes.append(f"architectures: {', '.join(archs)}")
    return "\n".join([*lines, "", "; ".join(notes) + ".", ""])


def _role(a: Tensor) -> str:
    return a.role if a.written is None else f"{a.role}, written {a.written}"


def _layout(a: Tensor) -> str:
    shape = " × ".join(a.shape)
    return shape if a.strides is None else f"{shape}, strides {', '.join(a.strides)}"


def _domain(d: Dim) -> str:
    if d.derived is not None:
        return "derived"
    step = f", multiple of {d.multiple}" if d.multiple > 1 else ""
    return f"{d.lo}..{d.hi}{step}"


def _fixed(d: Dim) -> str:
    if d.static:
        return "when compiled"
    return "at launch; a row's bits do not depend on it" if d.batch else "at launch"


if __name__ == "__main__":
    print(page(load_library().values()), end="")
