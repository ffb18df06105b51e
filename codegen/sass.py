"""The machine code of kernels, as nvdisasm names its instructions."""

from __future__ import annotations

import re
import struct
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tileproof.dsl import check

from .toolchain import Toolkit, cuda_tool, run

# Opcodes that reach global memory; LD, ST and ATOM through a pointer of unknown kind.
_GLOBAL = ("LDG", "STG", "LDGSTS", "ATOMG", "REDG", "RED", "LD", "ST", "ATOM")
_BULK = ("UTMALDG", "UTMASTG", "UTMAREDG", "UBLKCP", "UBLKRED")
_WIDTHS = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16, "256": 32}
FULL = 16  # bytes: the widest access of a thread on every architecture

_SIZE = 16  # bytes of an instruction, on all our architectures
_SECTION = re.compile(r"^\s*\.section\s+\.text\.(\w+)")
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*(?:\.\w+)*)")


def code(cubin: bytes) -> dict[str, bytes]:
    """The instructions of each kernel in a cubin, an ELF file: its sections ``.text.*``."""
    (table,) = struct.unpack_from("<Q", cubin, 40)
    size, count, names = struct.unpack_from("<3H", cubin, 58)
    sections = []
    for i in range(count):
        name, offset, length = struct.unpack_from("<I20x2Q", cubin, table + i * size)
        sections.append((name, cubin[offset : offset + length]))
    found = {}
    for at, data in sections:
        name = sections[names][1][at:].partition(b"\0")[0].decode()
        if name.startswith(".text."):
            found[name.removeprefix(".text.")] = data
    return found


def disassemble(pieces: Sequence[bytes], arch: str, toolkit: Toolkit = "pip") -> list[list[str]]:
    """The instructions, with modifiers, of each piece of code for `arch`.

    nvdisasm takes longer to start than for a kernel, so it is called once for all of them.
    Raises ToolchainError where it is missing.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "code").write_bytes(b"".join(pieces))
        options = ["-ndf", "--binary", arch.replace("sm_", "SM"), "code"]
        text = run([cuda_tool("nvdisasm", toolkit), *options], "nvdisasm", folder)
    names = [found[1] for found in map(_INSTRUCTION.match, text.splitlines()) if found]
    sizes = [len(piece) // _SIZE for piece in pieces]
    check(len(names) == sum(sizes), "instructions", got=len(names), expected=sum(sizes))
    remaining = iter(names)
    return [[next(remaining) for _ in range(size)] for size in sizes]


def listed(text: str) -> Iterator[tuple[str, str, str]]:
    """Kernel, instruction with its modifiers and the line itself for each line of nvdisasm's
    listing of a cubin within a kernel's code. Lines that are no instruction have an empty one."""
    kernel = ""
    for line in text.splitlines():
        if section := _SECTION.match(line):
            kernel = section[1]
        elif kernel:
            found = _INSTRUCTION.match(line)
            yield kernel, found[1] if found else "", line


def opcodes(instructions: Iterable[str]) -> Counter[str]:
    """How often each opcode stands in the code: ``LDG.E.128`` counts as LDG."""
    return Counter(name.partition(".")[0] for name in instructions)


def global_width(instruction: str) -> int | None:
    """Bytes a thread moves to or from global memory, 0 for a bulk copy, None for other
    instructions: ``LDG.E.128`` → 16."""
    opcode, *modifiers = instruction.split(".")
    if opcode in _BULK:
        return 0
    if opcode not in _GLOBAL:
        return None
    return next((_WIDTHS[m] for m in modifiers if m in _WIDTHS), 4)


def widths(instructions: Iterable[str]) -> Counter[str]:
    """Global accesses by opcode and width, ``LDG.16``."""
    found: Counter[str] = Counter()
    for name, count in Counter(instructions).items():
        if (width := global_width(name)) is not None:
            found[f"{name.partition('.')[0]}.{width or 'bulk'}"] += count
    return found
