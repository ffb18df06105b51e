"""Basic blocks, natural loops and live registers of one entry."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from .parse import Entry, Instruction, PtxError

_NAME = re.compile(r"%?[A-Za-z_$][\w$]*")
# Instructions whose first operand is read, not written.
_NO_RESULT: tuple[str, ...] = (
    "st",
    "red",
    "bra",
    "ret",
    "exit",
    "bar",
    "barrier",
    "cp",
    "membar",
    "fence",
    "trap",
)
_NO_RESULT += ("prefetch", "prefetchu", "stmatrix", "call", "nanosleep", "wgmma", "griddepcontrol")
_NO_RESULT += ("tcgen05", "brx", "setmaxnreg", "pmevent")


@dataclass
class Block:
    """Straight-line code. `next` lists successors: the branch's target, then falling through."""

    start: int
    end: int
    next: list[int] = field(default_factory=list)
    before: list[int] = field(default_factory=list)
    live_in: set[str] = field(default_factory=set)


@dataclass
class Graph:
    """`order` is a reverse post-order from block 0; `loops` maps headers to their blocks."""

    blocks: list[Block]
    order: list[int]
    loops: dict[int, set[int]]


def names(i: Instruction, registers: dict[str, int]) -> tuple[set[str], set[str]]:
    """Registers an instruction reads and writes."""
    reads: set[str] = set()
    writes: set[str] = set()
    silent = i.parts[0] in _NO_RESULT and "red" not in i.parts[1:]  # bar.red has a result
    for at, operand in enumerate(i.operands):
        found = {n for n in _NAME.findall(operand) if n in registers}
        result = at == 0 and "[" not in operand and not silent
        (writes if result else reads).update(found)
    if i.parts[0] == "call" and i.operands and i.operands[0].startswith("("):
        writes |= {n for n in _NAME.findall(i.operands[0]) if n in registers}
    if i.opcode.startswith(("mbarrier.try", "mbarrier.test", "tcgen05.ld")):
        writes |= {n for n in _NAME.findall(i.operands[0]) if n in registers}
    if i.opcode.startswith(("wgmma.mma", "mma")) or i.guard:
        reads |= writes  # accumulators, and what stays where the guard is false
    if i.opcode.startswith("wgmma.mma"):
        writes |= {n for n in _NAME.findall(i.operands[0]) if n in registers}
    if i.guard:
        reads.add(i.guard[0])
    return reads, writes


def build(entry: Entry) -> Graph:
    """Raises PtxError for a branch it cannot follow and for irreducible control flow."""
    blocks = _blocks(entry)
    order = _order(blocks)
    loops = _loops(blocks, order)
    _liveness(entry, blocks, order)
    return Graph(blocks, order, loops)


def _blocks(entry: Entry) -> list[Block]:
    code = entry.code
    ends = {i + 1 for i, x in enumerate(code) if x.parts[0] in ("bra", "ret", "exit", "trap")}
    starts = sorted(({0, *entry.labels.values()} | ends) - {len(code)})
    number = {s: n for n, s in enumerate(starts)}
    blocks = []
    for n, start in enumerate(starts):
        end = starts[n + 1] if n + 1 < len(starts) else len(code)
        block = Block(start, end)
        last = code[end - 1]
        kind = last.parts[0]
        if any(x.parts[0] == "brx" for x in code[start:end]):
            raise PtxError(f"line {last.line}: branch through a table (brx.idx)")
        if kind == "bra":
            target = entry.labels[last.operands[0]]
            if target == len(code):
                raise PtxError(f"line {last.line}: branch past the end")
            block.next.append(number[target])
        if (kind not in ("bra", "ret", "exit", "trap") or last.guard) and end < len(code):
            block.next.append(n + 1)
        blocks.append(block)
    for n, block in enumerate(blocks):
        for s in block.next:
            blocks[s].before.append(n)
    return blocks


def _order(blocks: list[Block]) -> list[int]:
    seen: set[int] = set()
    out: list[int] = []
    stack: list[tuple[int, int]] = [(0, 0)]
    seen.add(0)
    while stack:
        n, i = stack.pop()
        if i < len(blocks[n].next):
            stack.append((n, i + 1))
            s = blocks[n].next[i]
            if s not in seen:
                seen.add(s)
                stack.append((s, 0))
        else:
            out.append(n)
    return out[::-1]


def _loops(blocks: list[Block], order: list[int]) -> dict[int, set[int]]:
    rank = {n: i for i, n in enumerate(order)}
    dominators: dict[int, set[int]] = {n: set(order) for n in order}
    dominators[0] = {0}
    changed = True
    while changed:
        changed = False
        for n in order[1:]:
            before = [dominators[p] for p in blocks[n].before if p in rank]
            new = set.intersection(*before) | {n}
            changed |= new != dominators[n]
            dominators[n] = new
    loops: dict[int, set[int]] = {}
    for n in order:
        for s in blocks[n].next:
            if rank[s] > rank[n]:
                continue
            if s not in dominators[n]:
                raise PtxError("irreducible control flow")
            body = loops.setdefault(s, {s})
            stack = [n]
            while stack:
                b = stack.pop()
                if b not in body:
                    body.add(b)
                    stack += [p for p in blocks[b].before if p in rank]
    return loops


def _liveness(entry: Entry, blocks: list[Block], order: list[int]) -> None:
    used: dict[int, set[str]] = {}
    killed: dict[int, set[str]] = {}
    for n in order:
        uses: set[str] = set()
        kills: set[str] = set()
        for i in entry.code[blocks[n].start : blocks[n].end]:
            reads, writes = names(i, entry.registers)
            uses |= reads - kills
            kills |= writes
        used[n], killed[n] = uses, kills
    changed = True
    while changed:
        changed = False
        for n in reversed(order):
            out = set().union(*(blocks[s].live_in for s in blocks[n].next))
            new = used[n] | (out - killed[n])
            changed |= new != blocks[n].live_in
            blocks[n].live_in = new
