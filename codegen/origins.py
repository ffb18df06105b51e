"""Which line of the TileLang program a line of the CUDA text comes from.

TileLang marks statements it still knows the origin of with ``#line``. What its passes make up
carries no mark, and C's own rule would give it the line of whatever stands before. Here a line has
the origin of the innermost marked statement that contains it, which is true of every line, if at
times coarse: a copy may only be known to be somewhere in a loop, or in the kernel.
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# The pass config that makes TileLang's generator print the marks.
MARK = "tl.emit_line_directives"
_DIRECTIVE = re.compile(r'#line (\d+) "((?:[^"\\]|\\.)*)"')
# The generator's names for parts of one statement's expressions; each is used once in a function.
_NAME = re.compile(r"\b(?:__\d+|v_\w*|condval\w*|broadcast_var\w*)\b")
_TEMPORARY = re.compile(rf"\s+[\w:]+ ({_NAME.pattern})(?: = .*)?;")
_ESCAPED = re.compile(r"\\(.)")


@dataclass(frozen=True)
class Origin:
    """A line of a TileLang program, counted from 1."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


def of_kernel(prim_func: Any) -> Origin | None:
    """Where a prim_func is defined, None if TileLang was told not to keep track."""
    from tilelang.ir import get_prim_func_span, span_to_location

    place = span_to_location(get_prim_func_span(prim_func))
    return None if place is None else _origin(*place)


def split(marked: str, kernel: Origin | None) -> tuple[str, tuple[Origin | None, ...]]:
    """A generated text without its marks, and the origin of each of its lines.

    Whatever is in a function comes from `kernel`, if from nothing closer. What lies in TileLang's
    own files is no part of the program: it has the origin of what contains it.
    """
    lines: list[str] = []
    marks: dict[int, Origin | None] = {}
    for line in marked.splitlines(keepends=True):
        if found := _DIRECTIVE.match(line):
            marks[len(lines)] = _origin(_ESCAPED.sub(r"\1", found[2]), int(found[1]))
        else:
            lines.append(line)
    last = _last_uses(lines)
    origins: list[Origin | None] = []
    # Marked statements that contain the current line, outermost first: indentation, a line up to
    # which they go on at the least, origin.
    around: list[tuple[int, int, Origin]] = []
    mark: Origin | None = None
    for i, line in enumerate(lines):
        words = line.strip()
        depth = len(line) - len(line.lstrip())
        mark = marks.get(i, mark)
        if depth == 0:
            around.clear()
        elif words and not words.startswith("}"):
            while around and around[-1][0] >= depth and around[-1][1] < i:
                around.pop()
            if mark is not None and mark != kernel:
                around.append((depth, last.get(i, i), mark))
        origins.append(around[-1][2] if around else kernel if depth else None)
        mark = mark if words.startswith("#pragma") else None  # it belongs to the loop after it
    return "".join(lines), tuple(origins)


def _last_uses(lines: list[str]) -> dict[int, int]:
    """Where the generator declares a temporary of a statement: the last line that uses it."""
    declared: dict[str, int] = {}
    last: dict[int, int] = {}
    for i, line in enumerate(lines):
        if not line.startswith(" "):
            declared.clear()  # another function
        if found := _TEMPORARY.match(line):
            declared[found[1]] = i
        for name in _NAME.findall(line):
            if name in declared:
                last[declared[name]] = i
    return last


def _origin(file: str, line: int) -> Origin | None:
    """A file below the current folder is named from there."""
    package = importlib.util.find_spec("tilelang")
    path = Path(file)
    if package is not None and package.origin and Path(package.origin).parent in path.parents:
        return None
    here = Path.cwd()
    return Origin(str(path.relative_to(here)) if here in path.parents else file, line)
