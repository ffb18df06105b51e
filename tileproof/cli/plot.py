"""The roofline model of counted launches as a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tileproof.dsl import check
from tileproof.runtime.cache import atomic_write

from .counters import Launch

KINDS = (".svg", ".png")
_COLOURS = {"global memory": "#0969da", "shared memory": "#9a6700", "matrix units": "#1a7f37"}
_ADVICE = "pip install 'tileproof[plot]'"


def check_path(path: Path | None) -> None:
    """Refuse a picture's path, or one without matplotlib, before the work."""
    if path is not None:
        check(path.suffix in KINDS, "--plot", got=str(path), expected=f"{' or '.join(KINDS)}")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ImportError(f"matplotlib draws the roofline model; run: {_ADVICE}") from None


def write(path: Path, launches: Sequence[Launch]) -> None:
    """Draw into an .svg or .png."""
    atomic_write(path, draw(launches, path.suffix[1:]))


def draw(launches: Sequence[Launch], form: str) -> bytes:
    """Per launch the time each part of the chip needs at its peak: the longest bounds it. Below,
    where matrix units work, their operations per byte of memory under each chip's roof."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    matrix = [pair for pair in launches if sum(pair[1].matrix.values())]
    heights = [0.55 + 0.24 * len(launches), *([3.6] if matrix else [])]
    figure = Figure(figsize=(8, sum(heights) + 0.9), layout="constrained")
    axes = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    _bars(axes[0], launches)
    if matrix:
        _roofs(axes[1], matrix)
    stream = io.BytesIO()
    # Without a date and random names the same counts make the same bytes.
    metadata = {"Date": None} if form == "svg" else {}
    with rc_context({"svg.hashsalt": "tileproof"}):
        figure.savefig(stream, format=form, dpi=130, metadata=metadata)
    return stream.getvalue()


def _bars(axes: Any, launches: Sequence[Launch]) -> None:
    names = [f"{_short(c.kernel)} {row['arch']}" for row, c in launches]
    height = 0.8 / len(_COLOURS)
    for i, (part, colour) in enumerate(_COLOURS.items()):
        times = [row["model"]["microseconds"][part] for row, _ in launches]
        places = [n + (i - 1) * height for n in range(len(launches))]
        axes.barh(places, times, height, color=colour, label=part)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("µs at public peaks: a model, the longest bar is a lower bound of the time")
    axes.legend(fontsize=8, loc="best")
    axes.spines[["top", "right"]].set_visible(False)


def _roofs(axes: Any, launches: Sequence[Launch]) -> None:
    from tileproof.runtime.virtual import CHIPS

    for i, (row, counted) in enumerate(launches):
        chip, colour = CHIPS[row["arch"]], f"C{i % 10}"
        work = sum(counted.matrix.values())
        intensity = work / max(1, counted.unique_bytes)
        kind = max(counted.matrix, key=lambda name: counted.matrix[name]).rsplit(" ", 1)[-1]
        peak = chip.matrix[kind]
        ridge = peak / chip.memory
        span = [min(intensity, ridge) / 8, ridge, max(intensity, ridge) * 8]
        axes.plot(span, [min(peak, x * chip.memory) for x in span], color=colour, linewidth=1)
        seconds = row["model"]["microseconds"][row["model"]["limit"]] / 1e6
        label = f"{_short(counted.kernel)}, {chip.name}, {kind}"
        axes.plot([intensity], [work / seconds], "o", color=colour, label=label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("matrix operations per byte of global memory touched")
    axes.set_ylabel("operations per second")
    axes.legend(fontsize=8, loc="best")
    axes.spines[["top", "right"]].set_visible(False)


def _short(kernel: str) -> str:
    return kernel.removesuffix("_kernel").replace("__", "\n" if len(kernel) > 40 else " ", 1)
