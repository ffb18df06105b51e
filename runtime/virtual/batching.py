"""Runs of ldmatrix and mma.sync in CUDA text that lanes can leave to one meeting of their warp.

A run is a sequence of such calls, also in loops of constant extent, with nothing between them.
Their operands are addresses that no call of the run can change, so nobody can tell when in the run
each is performed, as long as they keep their order.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_LIMIT = 256  # calls of a run: their list lies on every thread's stack

_LOOP = re.compile(r"\s*for \(int (\w+) = 0; \1 < (\d+); \+\+\1\) \{")
_UNROLL = re.compile(r"\s*#pragma unroll")
_CALL = re.compile(r"\s*tl::(mma_sync|ptx_ldmatrix_x[124](?:_trans)?)(<[^;()]*>)?\((.*)\);")
# Arithmetic of variables that are no arrays, without calls and assignments.
_INDEX = r"(?:(?!\w\()[\w\s()+\-*/%&|^<>.?:])+"
_CAST = r"(?:\(\(\w+\s*\*\)(?:\w+)\)|\w+)"
_ROW = re.compile(rf"\(&\({_CAST}\[{_INDEX}\]\)\)")
_REGISTERS = re.compile(
    rf"\(&\((\w+)\[{_INDEX}\]\)\)"
    rf"|reinterpret_cast<(?:const )?\w+(?: int)?\s*\*>\((\w+) \+ {_INDEX}\)"
)


@dataclass
class _Run:
    """Lines `begin` to `end`, exclusive; how many calls they make, and of which arrays."""

    begin: int
    end: int
    calls: int
    loads: int
    read: set[str]
    written: set[str]

    def join(self, other: _Run) -> _Run:
        return _Run(
            self.begin,
            other.end,
            self.calls + other.calls,
            self.loads + other.loads,
            self.read | other.read,
            self.written | other.written,
        )


def batched(cuda_text: str) -> str:
    """`cuda_text` with its runs in batches of `vgpu/batch.h`; every line keeps its number."""
    lines = cuda_text.split("\n")
    arrays = set(re.findall(r"^\s*(?!.*__shared__)[\w: ]+ (\w+)\[\d+\];$", cuda_text, re.M))
    at = 0
    while at < len(lines):
        run = _run(lines, at, arrays)
        if run is None:
            at += 1
            continue
        while (more := _run(lines, run.end, arrays)) and _fits(joined := run.join(more)):
            run = joined
        if run.calls > 1 and re.fullmatch(r"(?!\s*#)(?!.*//).*[;{}]", lines[run.begin - 1]):
            _enclose(lines, run)
        at = run.end
    return "\n".join(lines)


def _fits(run: _Run) -> bool:
    # mma.sync's operands are kept between calls, so sums may not be operands too.
    return run.calls <= _LIMIT and not run.read & run.written


def _run(lines: list[str], begin: int, arrays: set[str]) -> _Run | None:
    """The call or whole loop of calls that starts at line `begin`, None if there is none."""
    at = begin
    while at < len(lines) and _UNROLL.fullmatch(lines[at]):
        at += 1
    if at == len(lines):
        return None
    if loop := _LOOP.fullmatch(lines[at]):
        body: _Run | None = None
        at += 1
        while at < len(lines) and lines[at].strip() != "}":
            if (next_ := _run(lines, at, arrays)) is None:
                return None
            body = body.join(next_) if body else next_
            at = next_.end
        if body is None or at == len(lines):
            return None
        extent = int(loop[2])
        run = _Run(begin, at + 1, body.calls * extent, body.loads * extent, body.read, body.written)
    elif at == begin and (call := _CALL.fullmatch(lines[at])):
        operands = _operands(call[3])
        load = call[1] != "mma_sync"
        if len(operands) != (2 if load else 3) or (load and not _ROW.fullmatch(operands[0])):
            return None
        found = [_REGISTERS.fullmatch(o) for o in (operands[1:] if load else operands)]
        names = [m[1] or m[2] for m in found if m]
        if len(names) != len(found) or not arrays.issuperset(names):
            return None
        read, written = (set(), set()) if load else (set(names[1:]), {names[0]})
        run = _Run(begin, at + 1, 1, int(load), read, written)
    else:
        return None
    return run if _fits(run) else None


def _operands(text: str) -> list[str]:
    """The arguments of a call, split at commas outside parentheses."""
    depth, parts = 0, [""]
    for letter in text:
        depth += (letter in "([") - (letter in ")]")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def _enclose(lines: list[str], run: _Run) -> None:
    first = next(call for line in lines[run.begin : run.end] if (call := _CALL.fullmatch(line)))
    name = f"{first[1].removeprefix('ptx_')} after line {run.begin}"
    lines[run.begin - 1] += f' {{ vgpu::Batch<{run.calls}, {run.loads}> vgpu_batch("{name}");'
    for i in range(run.begin, run.end):
        if call := _CALL.fullmatch(lines[i]):
            lines[i] = lines[i].replace(f"tl::{call[1]}", f"vgpu_batch.{call[1]}", 1)
    lines[run.end - 1] += " vgpu_batch.run(); }"
