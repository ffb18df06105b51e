"""``tileproof inspect --html``: resources, accesses and the roofline model as one page."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from tileproof.verify.html import STYLE

from . import inspected, plot
from .counters import Launch

_RESOURCES = (
    *("kernel", "arch", "registers", "spilled bytes", "shared memory", "resident warps"),
    *("matrix instructions", "narrow accesses", "instructions", "cubin bytes", "proof"),
)
_ACCESSES = ("access", "tensor", "bytes", "sectors", "line", "narrow because")
_TEXT = {"kernel", "arch", "proof", "access", "tensor", "line", "narrow because"}


def page(
    title: str,
    rows: Sequence[dict[str, Any]],
    places: Sequence[dict[str, Any]],
    launches: Sequence[Launch],
) -> str:
    """A self-contained page without scripts."""
    resources = [(row["kernel"], *inspected.figures(row)) for row in rows]
    mixes = [(row["kernel"], row["arch"], _mix(row["resources"]["sass"])) for row in rows]
    parts = [
        "<h2>Resources</h2>",
        _table(_RESOURCES, resources),
        "<p><small>Resident warps: of a multiprocessor, of those it could hold. Narrow accesses: "
        "instructions on global memory that move less than 16 bytes a thread, of all.</small></p>",
        "<h2>Instructions</h2>",
        _table(("kernel", "arch", "in the code"), mixes, text=("in the code",)),
        "<h2>Global memory</h2>",
        *_accesses(places),
    ]
    if launches:
        parts += ["<h2>Roofline model</h2>", _sizes(launches), _picture(launches)]
    body = "\n".join(parts)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>tileproof inspect {escape(title)}</title>
<meta name="viewport" content="width=device-width"><style>{STYLE}
svg {{ max-width: 60rem; width: 100%; height: auto }} table {{ width: auto }}
</style></head><body>
<h1>tileproof inspect {escape(title)}</h1>
{body}
</body></html>
"""


def _accesses(places: Sequence[dict[str, Any]]) -> Iterable[str]:
    for (kernel, arch), own in itertools.groupby(places, lambda p: (p["kernel"], p["arch"])):
        yield f"<h3><code>{escape(kernel)}</code> {escape(arch)}</h3>"
        yield _table(_ACCESSES, inspected.merged(list(own)))
    yield (
        "<p><small>Access: how many instructions of the code. Bytes: of a thread. Sectors: of 32 "
        "bytes, that a full warp asks for, and the fewest that could hold its bytes.</small></p>"
    )


def _mix(sass: dict[str, int]) -> str:
    ordered = sorted(sass.items(), key=lambda item: -item[1])
    return ", ".join(f"{count} {family}" for family, count in ordered)


def _sizes(launches: Sequence[Launch]) -> str:
    sizes = {", ".join(f"{k}={v}" for k, v in row["dims"].items()) for row, _ in launches}
    chips = dict.fromkeys(
        f"{row['model']['chip']}: {row['model']['source']}" for row, _ in launches
    )
    sources = "".join(f"<li>{escape(c)}</li>" for c in chips)
    return (
        f"<p>Counted by the virtual GPU at {escape('; '.join(sorted(sizes)))}.</p>"
        f"<ul><small>{sources}</small></ul>"
    )


def _picture(launches: Sequence[Launch]) -> str:
    svg = plot.draw(launches, "svg").decode()
    return svg[svg.index("<svg") :]


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]], text: Sequence[str] = ()) -> str:
    left = _TEXT | {*text}
    head = "".join(f"<th>{escape(c)}</th>" for c in columns)
    body = ""
    for row in rows:
        cells = (_cell(c, value, c in left) for c, value in zip(columns, row, strict=True))
        body += f"<tr>{''.join(cells)}</tr>\n"
    return f"<table><tr>{head}</tr>\n{body}</table>"


def _cell(column: str, value: str, left: bool) -> str:
    words = f"<code>{escape(value)}</code>" if column == "kernel" else escape(value)
    return f"<td>{words}</td>" if left else f'<td class="n">{words}</td>'
