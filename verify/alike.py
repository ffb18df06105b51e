"""Whether the rows of a tile are treated alike: one tile executed, at each size that matters."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from . import terms
from .domain import contiguous
from .facts import Access
from .flow import MIXED, NONE, UNSET, UnfollowedError, mix
from .rows import Place
from .terms import Symbol
from .tile import Tile

_MOST_LANES = 1 << 14


def run_tile(
    launch: Any,
    batch: Symbol,
    count: int,
    choices: Sequence[Mapping[Symbol, int]],
    alone: Collection[Symbol],
    places: Mapping[Access, Place],
) -> str:
    """Execute one tile of `count` rows at each choice of the other sizes, all of them at once: what
    is wrong with its rows, "" if nothing is.

    Of the blocks `alone` only the first is run, of others that share the tile's rows all are.
    `places` gives row and columns of each access.
    """
    domain, facts = launch.domain, launch.facts
    points = [domain.complete({**chosen, batch: count}) for chosen in choices]
    grids = [_grid(facts.symbols, alone, point) for point in points]
    lanes = [len(grid["block"]) for grid in grids]
    if sum(lanes) > _MOST_LANES:
        raise UnfollowedError(f"{sum(lanes)} threads at once")
    blocks = np.cumsum([0, *(1 + grid["block"].max() for grid in grids)])
    sizes = {
        s: np.repeat([np.int64(point[s]) for point in points], lanes) for s in domain.dims.values()
    }
    strides = {
        t.name: [terms.evaluate(n, sizes) for n in t.strides or contiguous(t.shape)]
        for t in domain.tensors.values()
    }
    machine = launch.machine
    arguments = (
        machine.function,
        machine.names,
        {s.name: value for s, value in sizes.items()},
        {tag: np.concatenate([grid[tag] for grid in grids]) for tag in grids[0]},
        np.concatenate([b + grid["block"] for b, grid in zip(blocks, grids, strict=False)]),
        np.repeat(np.arange(len(choices)) * count, lanes),
        strides,
        {
            t.name: a
            for t in domain.tensors.values()
            for a, n in enumerate(t.shape)
            if batch in n.symbols
        },
        machine.sizes,
        places,
        facts.symbols,
    )
    found = ""
    for shorten in (True, False):  # what was not shown by less is executed in full
        tile = Tile(*arguments, shorten)
        tile.run()
        found = _verdict(tile, count, len(choices))
        if not found or not tile.shortened:
            break
    return found


def _grid(
    symbols: Mapping[str, Symbol], alone: Collection[Symbol], point: Mapping[Symbol, int]
) -> dict[str, Any]:
    """Each ``threadIdx.*`` and ``blockIdx.*`` over the lanes of one size, and ``block``, which
    numbers their blocks."""
    extents = {
        tag: 1 if s in alone else 1 + int(terms.evaluate(s.hi, point)) for tag, s in symbols.items()
    }
    tags = [f"{kind}Idx.{a}" for kind in ("thread", "block") for a in "xyz"]
    shape = [extents.get(tag, 1) for tag in tags]
    lanes = np.arange(np.prod(shape))
    indices = dict(zip(tags, np.unravel_index(lanes, shape, order="F"), strict=True))
    return {**indices, "block": lanes // np.prod(shape[:3])}


def _verdict(tile: Tile, count: int, choices: int) -> str:
    """Rows of choice c are numbered from ``c * count`` on."""
    outputs = {tensor for tensor, *_ in tile.written}
    for tensor in sorted(outputs):
        parts = [w for w in tile.written if w[0] == tensor]
        row, columns = (np.concatenate([p[i] for p in parts]) for i in (1, 2))
        label, word = (np.concatenate([p[3][i] for p in parts]) for i in (0, 1))
        if (label == UNSET).any():
            number = int(row[label == UNSET][0]) % count
            where = "" if tensor not in tile.axis else f"row {number} of "
            return f"{where}{tensor} depends on memory of its block that nobody wrote"
        if tensor not in tile.axis:
            if (label != NONE).any():
                return f"{tensor} has no rows, but data of rows flows into it"
            continue
        wrong = (label != NONE) & (label != row)
        if wrong.any():
            r, other = int(row[wrong][0]) % count, int(label[wrong][0])
            source = "several rows" if other == MIXED else f"row {other % count}"
            return f"row {r} of {tensor} depends on {source} of its tile"
        seen = np.zeros((choices, count), np.uint64)
        np.add.at(seen.reshape(-1), row.astype(np.int64), mix(columns, word))
        if (seen != seen[:, :1]).any():
            r = int(np.argmax((seen != seen[:, :1]).any(axis=0)))
            return f"row {r} of {tensor} is not computed as row 0 of its tile is"
    return ""
