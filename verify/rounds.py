"""Rounds of a loop that do to their tile what earlier ones did, executed once for all of them.

A window of rounds starts from a state whose words are renamed apart from all else, which leaves of
them which are equal, and is watched. Each integer that decides must be the same in every later
window; an input may be another by a step, in the same row; a cell that is read may be another with
the same label, equal where this one is. If the window ends with the labels it began with, and with
equal words wherever it began with equal ones, so does every later one, by induction: after the last
of them labels and equal words are those that this one left.

Renaming forgets that a word is a constant or an input. So what is shown this way holds, and what
is not may still be shown by all rounds.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from .flow import Flow, Memory, mix

if TYPE_CHECKING:
    from .tile import Tile

_FEWEST = 12  # rounds of a loop worth watching
_LONGEST = 16  # rounds of a window
_WINDOWS = 12  # looked at before a loop is left to all of its rounds


def rounds_of(tile: Tile, variable: Any, first: Any, extent: Any) -> Rounds | None:
    """The rounds of a loop that may be worth watching."""
    if not tile.shorten or tile.watch is not None or variable in tile.plain:
        return None
    if np.ptp(first) or np.ptp(extent) or np.max(extent, initial=0) < _FEWEST:
        return None
    return Rounds(tile, variable, int(np.ravel(first)[0]), int(np.ravel(extent)[0]))


class Rounds:
    """The rounds of one loop, of which :meth:`after` says which to execute next.

    At first windows are of one round, and rename nothing; once a window seems to be repeated, it
    is tried.
    """

    def __init__(self, tile: Tile, variable: Any, first: int, count: int) -> None:
        self.tile, self.variable, self.first, self.count = tile, variable, first, count
        self.period = 1  # rounds of a window that is tried
        self.windows = _WINDOWS
        self.trying = False
        self.now = 0
        self.start = self.end = 0  # the window's first round, and the first that it says nothing of
        self.moving: dict[Any, Any] = {}  # names of what hangs on the round, and their values
        self.moved = False  # whether the last integer computed does
        self.steps: dict[tuple[str, int], int] = {}  # by tensor and later round, in elements
        self.words: list[Any] = []  # of cells that are others in a later round,
        self.others: dict[int, list[Any]] = {}  # and of those

    def after(self, i: int) -> int:
        """The round to execute after round `i`."""
        watched = self.tile.watch is self
        if watched:
            self._compare_words()
        self.now = i + 1
        if watched:
            repeated = self.end >= self.start + 2 * self.period
            if self.trying and repeated and self.now < self.start + self.period:
                self._begin_round()
                return self.now
            if self.trying and repeated and self._steady():
                self._stop()
                return self.start + (self.end - self.start) // self.period * self.period
            self.trying = repeated
            self.windows -= 1
        if self.windows and self.count >= self.now + 3 * self.period:
            self._begin_window()
        elif watched:
            self._stop()
            self.tile.plain.add(self.variable)
        return self.now

    def _begin_window(self) -> None:
        self.tile.watch, self.start, self.end = self, self.now, self.count
        if self.trying:
            self.tile.shortened = True
            self.tile.salt += 1
            for memory in self._memories():
                memory.word = self.renamed(memory.word)
            for v, flow in self.tile.data.items():
                self.tile.data[v] = Flow(flow.label, self.renamed(flow.word))
            self.before = self._state()
        self._begin_round()

    def _begin_round(self) -> None:
        self.tile.salt += 1
        self.moving = {self.variable: None}
        self.steps, self.words, self.others = {}, [], {}

    def _stop(self) -> None:
        self.windows, self.tile.watch = 0, None

    # -- the state ---------------------------------------------------------------------------

    def _memories(self) -> list[Memory]:
        cells = self.tile.cells.held
        return [*self.tile.memory.values(), *([cells] if cells is not None else [])]

    def _state(self) -> tuple[Any, Any, Any]:
        """Labels, words, and the integers that are kept from round to round."""
        held = [(m.label, m.word) for m in self._memories()]
        flows = [*held, *self.tile.data.values()]
        label, word = (np.concatenate([np.ravel(f[i]) for f in flows]) for i in (0, 1))
        cells, descriptors = self.tile.cells, self.tile.descriptors.items()
        starts = {v: (data, np.asarray(at).tobytes(), form) for v, (data, at, form) in descriptors}
        phases = {v: (count & 1).tobytes() for v, count in cells.phases.items()}
        return label, word, (starts, phases, dict(cells.first), len(self.tile.written))

    def _steady(self) -> bool:
        """Whether the window ends as it began."""
        label, word, numbers = self._state()
        old_label, old_word, old_numbers = self.before
        return (
            np.array_equal(label, old_label) and numbers == old_numbers and follows(old_word, word)
        )

    # -- what a round does -------------------------------------------------------------------

    def _later(self) -> range:
        """The rounds that this one may stand for."""
        return range(self.now + self.period, self.end, self.period)

    def _at(self, i: int, e: Any) -> Any:
        """The integer in another round."""
        env = self.tile.env
        kept = {v: env[v] for v in self.moving}
        env[self.variable] = self.first + i
        try:
            for v, value in self.moving.items():
                if value is not None:
                    env[v] = self.tile.integer(value)
            return self.tile.integer(e)
        finally:
            env.update(kept)

    def bound(self, variable: Any, value: Any) -> None:
        """A name was given to an integer."""
        if self.moved:
            self.moving[variable] = value

    def decided(self, e: Any, found: Any) -> None:
        """An integer decides what is done: it must be the same in later rounds."""
        if not self.moved:
            return
        for i in self._later():
            if not np.array_equal(self._at(i, e), found):
                if i == self.now + self.period:
                    self._lengthen(e, found)
                self.end = i
                return

    def _lengthen(self, e: Any, found: Any) -> None:
        """To a window after which the integer comes again."""
        for n in range(1, min(_LONGEST, self.count - 1 - self.now) + 1):
            if np.array_equal(self._at(self.now + n, e), found):
                if math.lcm(self.period, n) <= _LONGEST:
                    self.period = math.lcm(self.period, n)
                return

    def input(self, tensor: str, e: Any, found: Any) -> None:
        """An element of a tensor is read: in a later round all of one may be others, by one step,
        of the same rows."""
        moved = self.moved
        row = self.tile.place(tensor, found)[0]
        for i in self._later():
            other = self._at(i, e) if moved else found
            step = np.ravel(other - found)[0]
            together = self.steps.setdefault((tensor, i), step) == step
            together = together and (other - found == step).all()
            if not together or not np.array_equal(self.tile.place(tensor, other)[0], row):
                self.end = i
                return

    def cells(self, data: Any, dtype: Any, e: Any, found: Any, flow: Flow) -> Flow:
        """Cells of memory are read: in a later round they may be others, which are alike now."""
        places = {i: self._at(i, e) for i in self._later()} if self.moved else {}
        if all(np.array_equal(place, found) for place in places.values()):
            return flow
        self.words.append(np.ravel(flow.word))
        for i, place in places.items():
            memory, owner, byte, width = self.tile.where(
                data, dtype, self.tile.spread(place, dtype)
            )
            other = memory.read(owner, byte, width)
            self.others.setdefault(i, []).append(np.ravel(other.word))
            if not np.array_equal(other.label, flow.label):
                self.end = i
                break
        return Flow(flow.label, self.renamed(flow.word))

    def renamed(self, word: Any) -> Any:
        """Words apart from those of other rounds."""
        return mix(word, self.tile.salt) if self.trying else word

    def _compare_words(self) -> None:
        """Cells that are others in a later round must be equal there where they are now."""
        for i in self._later() if self.words else ():
            if not follows(*(np.concatenate(w) for w in (self.words, self.others[i]))):
                self.end = i
                return


def follows(before: Any, after: Any) -> bool:
    """Whether what was equal before is equal after."""
    _, first, inverse = np.unique(before, return_index=True, return_inverse=True)
    return np.array_equal(after, after[first][inverse])
