"""PTX text → entries with parameters, memory symbols and instructions.

The grammar is what nvcc prints: statements end in ``;``, blocks nest in braces (inline assembly
declares registers and labels of its own), directives begin with a dot. What does not fit is a
:class:`PtxError`, never passed over.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field


class PtxError(ValueError):
    """PTX that this reader does not understand; the words name it."""


@dataclass(frozen=True)
class Symbol:
    """A named piece of memory. `size` is None where the launch decides (``extern .shared``)."""

    name: str
    space: str
    size: int | None
    align: int


@dataclass(frozen=True)
class Instruction:
    """One instruction. `guard` is ``(predicate, whether negated)``; `line` counts from 1."""

    opcode: str
    operands: tuple[str, ...]
    guard: tuple[str, bool] | None
    line: int
    text: str

    @property
    def parts(self) -> list[str]:
        """``ld.global.nc.v4.u32`` taken apart."""
        return self.opcode.split(".")


@dataclass
class Entry:
    """One kernel. `labels` maps a label to the index of the instruction after it."""

    name: str
    params: list[Symbol]
    symbols: dict[str, Symbol] = field(default_factory=dict)
    registers: dict[str, int] = field(default_factory=dict)
    code: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    tables: dict[str, tuple[str, ...]] = field(default_factory=dict)


_SIZES = {"b8": 8, "b16": 16, "b32": 32, "b64": 64, "b128": 128, "pred": 1}
_SIZES |= {f"{k}{n}": n for k in "suf" for n in (8, 16, 32, 64) if (k, n) != ("f", 8)}
_SIZES |= {"f16x2": 32, "bf16x2": 32, "bf16": 16, "tf32": 32, "f32x2": 64}

_ENTRY = re.compile(r"(?:\.visible|\.weak|\.extern)?\s*\.entry\s+([\w$]+)\s*\(([^)]*)\)([^{]*)\{")
_MEMORY = re.compile(
    r"(?:\.(?:visible|extern|weak|common)\s+)*\.(?P<space>shared|local|global|const|param)\s+"
    r"(?P<kind>(?:\.\w+\s+|\d+\s+)+)(?P<name>[A-Za-z_$%][\w$]*)(?P<dims>(?:\[\d*\])*)"
)
_ALIGN = re.compile(r"\.align\s+(\d+)")
_REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+(.*)", re.S)
_LABEL = re.compile(r"([$%\w]+)\s*:(?!:)\s*")
_GUARD = re.compile(r"@(!?)([%\w$]+)\s+")
_TABLE = re.compile(r"([$\w]+)\s*:\s*\.branchtargets\s+(.*)", re.S)


def bits_of(kind: str) -> int:
    """Width of a PTX type, e.g. 32 for ``s32``. Raises PtxError for an unknown one."""
    if kind not in _SIZES:
        raise PtxError(f"type .{kind}")
    return _SIZES[kind]


def is_type(part: str) -> bool:
    return part in _SIZES


def read(text: str) -> dict[str, Entry]:
    """The entries of a PTX module by name. Raises PtxError."""
    text = _without_comments(text)
    entries: dict[str, Entry] = {}
    outside: dict[str, Symbol] = {}
    position = 0
    bodies: list[tuple[Entry, str, int]] = []
    for found in _ENTRY.finditer(text):
        _globals(text[position : found.start()], outside)
        end = _closing(text, found.end())
        name, params, _ = found.groups()
        entry = Entry(name, [_symbol(p) for p in params.split(",") if p.strip()])
        bodies.append((entry, text[found.end() : end], text.count("\n", 0, found.end()) + 1))
        position = end + 1
    _globals(text[position:], outside)
    for entry, body, line in bodies:
        entry.symbols |= outside
        _body(entry, body, line)
        entries[entry.name] = entry
    return entries


def _without_comments(text: str) -> str:
    text = re.sub(r"/\*.*?\*/", lambda m: "\n" * m.group().count("\n"), text, flags=re.S)
    text = re.sub(r"//[^\n]*", "", text)
    return re.sub(r"^\s*\.loc\s[^\n]*", "", text, flags=re.M)  # ends at its line


def _closing(text: str, start: int) -> int:
    depth = 1
    for brace in re.finditer(r"[{}]", text[start:]):
        depth += 1 if brace.group() == "{" else -1
        if depth == 0:
            return start + brace.start()
    raise PtxError("a body without its closing brace")


def _globals(text: str, outside: dict[str, Symbol]) -> None:
    for found in _MEMORY.finditer(text):
        if found["space"] != "param":
            symbol = _symbol(found.group())
            outside[symbol.name] = symbol


def _symbol(text: str) -> Symbol:
    found = _MEMORY.search(text)
    if found is None:
        raise PtxError(f"declaration {text.strip()!r}")
    kinds = [w[1:] for w in found["kind"].split() if is_type(w[1:])]
    if len(kinds) != 1:
        raise PtxError(f"declaration {text.strip()!r}")
    width = bits_of(kinds[0]) // 8
    align = _ALIGN.search(text)
    size: int | None = width
    for n in re.findall(r"\[(\d*)\]", found["dims"]):
        size = None if n == "" or size is None else size * int(n)
    return Symbol(found["name"], found["space"], size, int(align[1]) if align else width)


def _body(entry: Entry, body: str, line: int) -> None:
    scopes: list[int] = []
    labels_of: dict[tuple[int, ...], set[str]] = {}
    pending: list[tuple[Instruction, tuple[int, ...]]] = []
    opened = 0
    for statement, at in _statements(body, line):
        if statement == "{":
            opened += 1
            scopes.append(opened)
            continue
        if statement == "}":
            scopes.pop()
            continue
        here = tuple(scopes)
        if table := _TABLE.match(statement):
            entry.tables[table[1]] = tuple(n.strip() for n in table[2].split(","))
            continue
        while label := _LABEL.match(statement):
            labels_of.setdefault(here, set()).add(label[1])
            entry.labels[_scoped(label[1], here)] = len(pending)
            statement = statement[label.end() :]
        if not statement:
            continue
        if statement.startswith("."):
            _directive(entry, statement)
            continue
        pending.append((_instruction(statement, at), here))
    for instruction, here in pending:
        entry.code.append(_resolve(instruction, here, labels_of))


def _scoped(label: str, scope: tuple[int, ...]) -> str:
    return label if not scope else f"{label}@{scope[-1]}"


def _resolve(
    i: Instruction, scope: tuple[int, ...], labels_of: dict[tuple[int, ...], set[str]]
) -> Instruction:
    """A branch to a label of inline assembly means the innermost scope that has it."""
    if i.parts[0] != "bra":
        return i
    for depth in range(len(scope), -1, -1):
        if i.operands[0] in labels_of.get(scope[:depth], ()):
            target = _scoped(i.operands[0], scope[:depth])
            return Instruction(i.opcode, (target,), i.guard, i.line, i.text)
    raise PtxError(f"line {i.line}: branch to {i.operands[0]}, which is no label")


def _statements(body: str, line: int) -> Iterator[tuple[str, int]]:
    """Statements, scope braces and labels with their lines. A brace in a statement is a vector."""
    start, depth = 0, 0
    for found in re.finditer(r"[{};]", body):
        if depth:
            depth += {"{": 1, "}": -1}.get(found.group(), 0)
            continue
        chunk = body[start : found.start()]
        text = chunk.strip()
        if found.group() == "{" and text and not text.endswith(":"):
            depth = 1
            continue
        if text:
            yield text, line + body.count("\n", start, start + chunk.index(text))
        if found.group() != ";":
            yield found.group(), line
        line += body.count("\n", start, found.end())
        start = found.end()
    if body[start:].strip():
        yield body[start:].strip(), line


_SILENT = (".pragma", ".file", ".callprototype")


def _directive(entry: Entry, text: str) -> None:
    if text.startswith(_SILENT):
        return
    if found := _REGISTERS.match(text):
        width = bits_of(found[1])
        for name in found[2].split(","):
            name = name.strip()
            if counted := re.fullmatch(r"([%\w$]+)<(\d+)>", name):
                names = [f"{counted[1]}{n}" for n in range(int(counted[2]))]
            else:
                names = [name]
            entry.registers.update(dict.fromkeys(names, width))
        return
    if _MEMORY.match(text):
        symbol = _symbol(text)
        entry.symbols[symbol.name] = symbol
        return
    raise PtxError(f"directive {text.split()[0]}")


def _instruction(text: str, line: int) -> Instruction:
    text = " ".join(text.split())
    rest, guard = text, None
    if found := _GUARD.match(text):
        guard = (found[2], found[1] == "!")
        rest = text[found.end() :]
    opcode, _, operands = rest.partition(" ")
    while operands.startswith("."):  # inline assembly may have a space in an opcode
        more, _, operands = operands.partition(" ")
        opcode += more
    return Instruction(opcode, tuple(split_operands(operands)), guard, line, text)


def split_operands(text: str) -> list[str]:
    """``{a, b}, [c+4], d`` → three operands; commas inside brackets do not count."""
    out, depth, start = [], 0, 0
    for i, c in enumerate(text):
        if c in "{[(":
            depth += 1
        elif c in "}])":
            depth -= 1
        elif c == "," and depth == 0:
            out.append(text[start:i].strip())
            start = i + 1
    last = text[start:].strip()
    return [*out, last] if last else out
