"""One thread's run through an entry, for all inputs at once.

Blocks are executed in reverse post-order. Where paths meet, registers become selections by the
paths' conditions. A loop whose exit is decided by constants runs trip by trip; any other loop is
summarised by one generic trip ``k``: registers that change by a loop-invariant step are
``start + k * step``, all others may hold anything.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from . import bits, loops, walk
from .bits import Term
from .cfg import Graph, names
from .memory import TOUCHES as PLAIN_TOUCHES
from .memory import Touch, UnmodelledError, lanes
from .multiply import SHARED_WINDOW, multiply
from .parse import Entry, Instruction, PtxError, bits_of
from .semantics import RESULTS, destinations, is_float, kind

TOUCHES = {**PLAIN_TOUCHES, "wgmma": multiply}
MOST_TRIPS = 1024
_MOST_WORK = 60_000  # instructions of one loop that are executed trip by trip
_MOST_STEPS = 1_000_000
_ADDRESS = re.compile(r"\[\s*([%\w$]+)?\s*(?:\+\s*(-?\w+))?\s*\]")
_ENDS = ("__assertfail", "__trap")
_HARMLESS = ("vprintf",)

Path = tuple[Term, ...]


@dataclass(frozen=True)
class Region:
    """Memory an address may be based on. `size` is in bytes, 64 bits wide.

    `elements` gives a value loaded from it, of a width in bits: a fresh one that meets the contract
    of an index tensor. None where nothing is promised.
    """

    name: str
    size: Term
    align: int
    elements: Callable[[str, int], Term] | None = None


@dataclass
class Inputs:
    """What a launch passes to a thread: parameters by position, special registers, memory.

    `regions` is keyed by the variable that stands for the base address. `boxes` gives the bytes
    that a tensor map's box takes in shared memory, by the map's position among the parameters.
    """

    params: list[Term]
    special: Mapping[str, Term]
    regions: dict[Term, Region]
    shared_bytes: Term
    boxes: Mapping[int, Term] = field(default_factory=dict)


@dataclass(frozen=True)
class Event:
    """One memory access as it was executed, under the conditions of its path."""

    instruction: int
    touch: Touch
    path: Path


@dataclass
class State:
    path: Path
    registers: dict[str, Term]


@dataclass
class Thread:
    """Executes one entry. `events` are its memory accesses; `unmodelled` maps names to counts.

    `exact` says of variables what a proof does without, but a counterexample must meet.
    """

    entry: Entry
    graph: Graph
    inputs: Inputs
    holds: Callable[[Path, Term], bool]
    events: list[Event] = field(default_factory=list)
    unmodelled: dict[str, int] = field(default_factory=dict)
    exact: dict[Term, Term] = field(default_factory=dict)
    steps: int = 0
    now: State = field(default_factory=lambda: State((), {}))

    def run(self) -> None:
        """Raises PtxError for what cannot be executed at all."""
        self.params = {
            p.name: t for p, t in zip(self.entry.params, self.inputs.params, strict=True)
        }
        self.bases = {r.name: v for v, r in self.inputs.regions.items()}
        self.region(set(self.graph.order), None, State((), {}))

    # --- control flow ----------------------------------------------------------------------------

    def region(
        self, blocks: set[int], header: int | None, state: State
    ) -> tuple[State | None, dict[int, State]]:
        """Run from `header` (or block 0) to all exits: the state at the back edges, and exits."""
        start = 0 if header is None else header
        waiting: dict[int, list[State]] = {start: [state]}
        back: list[State] = []
        exits: dict[int, list[State]] = {}
        for n in self.graph.order:
            if n not in waiting:
                continue
            here = self.merge(waiting.pop(n), n)
            whole = n in self.graph.loops and n != header
            leaving = self.loop(n, here) if whole else self.block(n, here)
            for target, after in leaving:
                if target == header:
                    back.append(after)
                elif target in blocks:
                    waiting.setdefault(target, []).append(after)
                else:
                    exits.setdefault(target, []).append(after)
        merged = {n: self.merge(states, n) for n, states in exits.items()}
        return (self.merge(back, start) if back else None), merged

    def merge(self, states: list[State], block: int) -> State:
        """One state for all paths that arrive at `block`; only live registers are kept."""
        live = self.graph.blocks[block].live_in
        if len(states) == 1:
            only = states[0]
            kept = {r: v for r, v in only.registers.items() if r in live}
            return State(only.path, kept)
        common = 0
        while all(
            len(s.path) > common and s.path[common] is states[0].path[common] for s in states
        ):
            common += 1
        rests = [bits.all_(s.path[common:]) for s in states]
        joined = bits.any_(rests)
        path = states[0].path[:common] + (() if bits.number(joined) == 1 else (joined,))
        registers = {}
        for r in sorted(live):
            values = [s.registers.get(r) for s in states]
            if any(v is None for v in values):
                continue
            total = values[-1]
            for condition, v in zip(rests[-2::-1], values[-2::-1], strict=True):
                assert v is not None and total is not None
                total = bits.ite(condition, v, total)
            assert total is not None
            registers[r] = total
        return State(path, registers)

    def block(self, n: int, state: State) -> list[tuple[int, State]]:
        """Execute a block; where it goes, and with what."""
        block = self.graph.blocks[n]
        self.now = State(state.path, dict(state.registers))
        for at in range(block.start, block.end):
            i = self.entry.code[at]
            self.steps += 1
            if self.steps > _MOST_STEPS:
                raise PtxError(f"more than {_MOST_STEPS} steps")
            when = self.guard(i)
            head = i.parts[0]
            if head in ("bra", "ret", "exit", "trap"):
                return self.leave(block.next, head, when)
            if bits.number(when) == 0:
                continue
            if head == "call" and any(name in i.text for name in _ENDS):
                return []
            self.execute(at, i, when)
        return [(s, self.now) for s in block.next]

    def leave(self, targets: list[int], head: str, when: Term) -> list[tuple[int, State]]:
        goes = targets[:1] if head == "bra" else []
        stays = targets[1:] if head == "bra" else targets
        out = []
        for condition, to in ((when, goes), (bits.negate(when), stays)):
            if to and bits.number(condition) != 0:
                out.append((to[0], State(self.under(condition), self.now.registers)))
        return out

    def under(self, condition: Term) -> Path:
        """The path further restricted."""
        if bits.number(condition) == 1:
            return self.now.path
        return (*self.now.path, *(condition.args if condition.op == "all" else (condition,)))

    def guard(self, i: Instruction) -> Term:
        if i.guard is None:
            return bits.true()
        p = self.read(i.guard[0], 1)
        return bits.negate(p) if i.guard[1] else p

    # --- loops -----------------------------------------------------------------------------------

    def loop(self, header: int, state: State) -> list[tuple[int, State]]:
        """All trips of a loop: one by one if constants decide them, else a generic one."""
        body = self.graph.loops[header]
        seen = len(self.events)
        unmodelled, steps = dict(self.unmodelled), self.steps
        here: State | None = state
        exits: dict[int, State] = {}
        for _ in range(MOST_TRIPS):
            assert here is not None
            here, exits = self.region(body, header, here)
            if here is None:
                return list(exits.items())
            if exits or self.steps - steps > _MOST_WORK:
                break
        del self.events[seen:]
        self.unmodelled = unmodelled
        return loops.summarise(self, header, state)

    def written(self, body: Iterable[int]) -> set[str]:
        """Registers that any block of `body` writes."""
        out: set[str] = set()
        for n in body:
            block = self.graph.blocks[n]
            for i in self.entry.code[block.start : block.end]:
                out |= names(i, self.entry.registers)[1]
        return out

    # --- instructions ----------------------------------------------------------------------------

    def execute(self, at: int, i: Instruction, when: Term) -> None:
        head = i.parts[0]
        values: list[Term | None] | None = None
        try:
            if head in TOUCHES:
                values = self.memory(at, i, when)
            elif head == "call":
                if not any(name in i.text for name in _HARMLESS):
                    raise UnmodelledError(f"call of {i.operands[-2] if i.operands else '?'}")
            elif head in RESULTS:
                values = RESULTS[head](i, self)
            else:
                raise UnmodelledError(".".join(i.parts[:3]))
        except UnmodelledError as missing:
            self.unmodelled[str(missing)] = self.unmodelled.get(str(missing), 0) + 1
        written = names(i, self.entry.registers)[1]
        if values is None:
            for name in written:
                self.now.registers.pop(name, None)
            return
        targets = destinations(i.operands[0]) if values else []
        for name, value in zip(targets, values, strict=True):
            if name in self.entry.registers:
                self.write(name, value, when, kind(i)[0] == "s")

    def write(self, name: str, value: Term | None, when: Term, sign: bool) -> None:
        if value is not None and bits.number(when) != 1:
            old = self.now.registers.get(name)
            value = None if old is None else bits.ite(when, self.sized(name, value, sign), old)
        if value is None:
            self.now.registers.pop(name, None)
        else:
            self.now.registers[name] = self.sized(name, value, sign)

    def sized(self, name: str, value: Term, sign: bool) -> Term:
        return bits.resize(value, self.entry.registers[name], sign)

    def memory(self, at: int, i: Instruction, when: Term) -> list[Term | None] | None:
        if i.parts[0] in ("ld", "st") and i.parts[1] == "param":
            return [self.parameter(i)] if i.parts[0] == "ld" else None
        path = self.under(when)
        for touch in TOUCHES[i.parts[0]](i, self):
            if bits.number(touch.when) != 0:
                self.events.append(Event(at, touch, path))
        if i.parts[0] != "ld" or is_float(kind(i)):
            return None
        return self.loaded(i)

    def loaded(self, i: Instruction) -> list[Term | None] | None:
        """What a load returns, where something is known of it."""
        name, width = kind(i), bits_of(kind(i))
        found = self.base(self.address(next(o for o in i.operands if "[" in o)))
        region = None if found is None else self.inputs.regions[found[0]]
        out: list[Term | None] = []
        for target in destinations(i.operands[0]):
            value = None
            if region is not None and region.elements is not None:
                value = region.elements(f"{region.name}[{bits.serial()}]", width)
            elif target in self.entry.registers:
                value = bits.fresh(width, of="" if region is None else region.name)
                value = bits.resize(value, self.entry.registers[target], name[0] == "s")
            out.append(value)
        return out if len(out) == lanes(i) else None

    def parameter(self, i: Instruction) -> Term | None:
        found = _ADDRESS.fullmatch(i.operands[1])
        value = self.params.get(found[1]) if found else None
        if found is None or value is None or lanes(i) > 1:
            return None
        width = bits_of(kind(i))
        if found[2] or value.width != width:
            symbol = next(p for p in self.entry.params if p.name == found[1])
            offset = int(found[2] or "0", 0)
            if not 0 <= offset <= (symbol.size or 0) - width // 8 or offset * 8 % width:
                raise PtxError(f"line {i.line}: {i.text} leaves its parameter")
            return None
        return value

    # --- operands --------------------------------------------------------------------------------

    def width_of(self, operand: str) -> int | None:
        return self.entry.registers.get(operand)

    def read(self, operand: str, width: int) -> Term:
        declared = self.entry.registers.get(operand)
        if declared is not None:
            value = self.now.registers.get(operand)
            if value is None:
                value = bits.fresh(declared)
                self.now.registers[operand] = value
            return bits.resize(value, width, False)
        if operand.startswith("%"):
            value = self.inputs.special.get(operand)
            return bits.resize(value, width, False) if value is not None else bits.fresh(width)
        if re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|\d+)U?", operand):
            return bits.const(int(operand.rstrip("U"), 0), width)
        if operand in self.entry.symbols or operand in self.params:
            return bits.resize(self.symbol(operand), width, False)
        return bits.fresh(width)  # a floating-point number

    def unsigned(self, operand: str, width: int) -> Term:
        value = self.read(operand, width)
        if value.range[0] >= 0 or value.width < 32:
            return value
        if any(map(bits.untracked, walk.variables(value))):  # data: nothing will show it
            return value
        if not self.holds(self.now.path, bits.negate(bits.less(value, bits.const(0, width)))):
            return value
        value = bits.clamp(value, 0)
        if self.entry.registers.get(operand) == width:
            self.now.registers[operand] = value
        return value

    def symbol(self, name: str) -> Term:
        """The address of a variable; its region appears when it is first taken."""
        if name in self.bases:
            return self.bases[name]
        if name in self.params:
            parameter = next(p for p in self.entry.params if p.name == name)
            space, size, align = "param", parameter.size, parameter.align
        else:
            symbol = self.entry.symbols[name]
            space, size, align = symbol.space, symbol.size, symbol.align
        width = 32 if space in ("shared", "local") else 64
        zeros = (align & -align).bit_length() - 1
        top = (1 << 24) if width == 32 else (1 << 47)
        extent = self.inputs.shared_bytes if size is None else bits.const(size, 64)
        if space == "shared":  # of a block, all of it
            top = max(align, SHARED_WINDOW - max(0, extent.range[1]))
        base = bits.var(f"&{name}", width, (0, top - align), zeros)
        self.inputs.regions[base] = Region(name, extent, align)
        self.bases[name] = base
        return base

    def address(self, operand: str) -> Term:
        found = _ADDRESS.fullmatch(operand)
        if found is None:
            raise PtxError(f"address {operand}")
        name, offset = found[1] or "0", int(found[2] or "0", 0)
        base = self.read(name, self.entry.registers.get(name, 64))
        return bits.add(base, bits.const(offset, base.width))

    def box(self, operand: str) -> Term:
        address = operand.strip("[] ").split(",")[0].strip()
        found = self.base(self.read(address, 64))
        names = [p.name for p in self.entry.params]
        name = None if found is None else self.inputs.regions[found[0]].name
        box = self.inputs.boxes.get(names.index(name)) if name in names else None
        if box is None:
            raise UnmodelledError("a copy by a tensor map that is no parameter of the launch")
        return box

    def is_base(self, t: Term) -> bool:
        return t in self.inputs.regions

    def lane(self) -> Term:
        return self.inputs.special["%laneid"]

    def base(self, address: Term) -> tuple[Term, Term] | None:
        """An address as the variable of a region and an offset, 64 bits wide; None if it is none.

        Addresses in shared memory have 32 bits, whatever the register.
        """
        while True:
            _, parts = bits.linear(address)
            for atom, c in parts.items():
                inner = atom.args[0] if atom.op in ("sext", "zext") else atom
                if c == 1 and inner in self.inputs.regions:
                    return inner, bits.extend(bits.sub(address, atom), 64, True)
            if address.op not in ("zext", "sext"):
                return None
            address = address.args[0]
