"""Every access of a kernel to global memory: how wide it is in the machine code, where it comes
from, and why it is not 16 bytes wide, if it is not."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tileproof.runtime.virtual import signatures

from .addresses import Address, addresses
from .device import flags, to_ptx
from .origins import Origin
from .sass import FULL, global_width, listed
from .toolchain import Toolkit, cuda_tool, run

# Bytes of the element types TileLang prints for pointer parameters; fp4 packs two into one.
_SIZES = {
    **dict.fromkeys(("double", "int64_t", "uint64_t"), 8),
    **dict.fromkeys(("float", "int", "uint", "unsigned", "int32_t", "uint32_t"), 4),
    **dict.fromkeys(("half_t", "bfloat16_t", "short", "ushort", "int16_t", "uint16_t"), 2),
}


@dataclass(frozen=True)
class Access:
    """Instructions of one kind that one line of the CUDA text became.

    instruction: as disassembled, ``LDG.E.128``. width: bytes a thread moves, 0 for a bulk copy.
    count: how often it stands in the code. tensor: None where the text does not tell. line: of the
    CUDA text, from 1, 0 if unknown. origin: of the TileLang program. sectors, least: 32-byte
    sectors a full warp asks for, and the fewest that hold its bytes, 0 where not known.
    reason: why it is narrower than 16 bytes; empty if it is not.
    """

    kernel: str
    instruction: str
    width: int
    count: int
    tensor: str | None
    line: int
    origin: Origin | None
    sectors: int
    least: int
    reason: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def accesses(
    cuda: str,
    arch: str,
    *,
    contract_fma: bool = True,
    origins: Sequence[Origin | None] = (),
    multiples: Mapping[str, int] | None = None,
    toolkit: Toolkit = "pip",
) -> list[Access]:
    """Compile `cuda` once more, with line numbers, and say what each global access became.

    `origins` are those of each line, `multiples` what sizes are known to be multiples of. The code
    is the one a build makes: line numbers do not change it. Raises ToolchainError without nvcc.
    """
    found: Counter[tuple[str, str, int]] = Counter()
    for kernel, line, instruction in _with_lines(_disassemble(cuda, arch, contract_fma, toolkit)):
        if global_width(instruction) is not None:
            found[kernel, instruction, line] += 1
    text = _Text(cuda, multiples or {})
    placed = {key: text.place(*key) for key in found}
    used = {place.line for place in placed.values() if place is not None}
    result = []
    for (kernel, name, line), count in sorted(found.items(), key=lambda item: item[0][2]):
        place = placed[kernel, name, line] or text.left(kernel, name, used)
        width = global_width(name) or 0
        line = place.line if place is not None else line
        origin = origins[line - 1] if 0 < line <= len(origins) else None
        tensor = place.tensor if place is not None else None
        facts = (*_sectors(place, width), _reason(place, width))
        result.append(Access(kernel, name, width, count, tensor, line, origin, *facts))
    return result


class _Text:
    """The addresses a CUDA text writes, per kernel."""

    def __init__(self, cuda: str, multiples: Mapping[str, int]) -> None:
        self.lines = cuda.splitlines()
        declared = {name: found.parameters for name, found in signatures(cuda).items()}
        self.tensors = {name: dict(_tensors(p)) for name, p in declared.items()}
        self.sizes = {
            kernel: {n: multiples.get(n, 1) for kind, n in p if not kind.endswith("*")}
            for kernel, p in declared.items()
        }
        starts = {i: m[1] for i, row in enumerate(self.lines) if (m := _BODY.match(row))}
        self.bodies: dict[str, range] = {}
        for start, following in zip(starts, [*list(starts)[1:], len(self.lines)], strict=True):
            self.bodies[starts[start]] = range(start + 1, following)

    def place(self, kernel: str, instruction: str, line: int) -> Address | None:
        """The address an instruction of a line uses, None unless there is only one tensor."""
        if not line:
            return None
        if global_width(instruction) == 0:
            found = _MAP.search(self.lines[line - 1])
            return Address(found[1], 1, "0", False, line) if found else None
        return _only(self._fitting(kernel, instruction, line - 1))

    def left(self, kernel: str, instruction: str, used: set[int]) -> Address | None:
        """For an instruction the compiler moved away from its line: an address on a line that no
        instruction has, None unless those are of one tensor."""
        if global_width(instruction) == 0:
            return None
        lines = (i for i in self.bodies[kernel] if i + 1 not in used)
        return _only([a for i in lines for a in self._fitting(kernel, instruction, i)])

    def _fitting(self, kernel: str, instruction: str, number: int) -> list[Address]:
        stores = instruction.startswith("ST")
        both = instruction.startswith(("ATOM", "RED"))
        places = addresses(self.lines, number, self.tensors[kernel], self.sizes[kernel])
        return [p for p in places if both or p.written == stores]


_BODY = re.compile(r'extern "C" __global__ .*?\b(\w+)\([^()]*\) \{')
_MAP = re.compile(r"\btl::tma_\w+(?:<[^(]*>)?\((\w+)")


def _only(places: Sequence[Address]) -> Address | None:
    return places[0] if len({p.tensor for p in places}) == 1 else None


def _tensors(parameters: Sequence[tuple[str, str]]) -> Iterator[tuple[str, int]]:
    for kind, name in parameters:
        if kind.endswith("*"):
            yield name, _SIZES.get(kind.removeprefix("const ").rstrip("* "), 1)


def _disassemble(cuda: str, arch: str, contract_fma: bool, toolkit: Toolkit) -> str:
    options = [*flags(arch, contract_fma=contract_fma), "-lineinfo"]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        ptx = to_ptx(cuda, arch, contract_fma=contract_fma, lines=True, toolkit=toolkit)
        (folder / "kernel.ptx").write_text(ptx)
        nvcc, nvdisasm = (cuda_tool(name, toolkit) for name in ("nvcc", "nvdisasm"))
        run([nvcc, "-cubin", *options, "kernel.ptx"], "ptxas", folder)
        return run([nvdisasm, "-gi", "-c", "kernel.cubin"], "nvdisasm", folder)


_PLACE = re.compile(r'^\s*//## File "([^"]*)", line (\d+)( inlined at)?')


def _with_lines(text: str) -> Iterator[tuple[str, int, str]]:
    """Kernel, line of the CUDA text and instruction. Of inlined code the outermost line counts."""
    line = 0
    for kernel, instruction, row in listed(text):
        if instruction:
            yield kernel, line, instruction
        elif (place := _PLACE.match(row)) and not place[3]:
            line = int(place[2]) if Path(place[1]).name == "kernel.cu" else 0


def _sectors(place: Address | None, width: int) -> tuple[int, int]:
    """Sectors a warp without idle threads touches, and the fewest its distinct bytes fit in."""
    if place is None or not width or place.unknown:
        return 0, 0
    offsets = set(place.lanes())
    touched = {(o + b) // 32 for o in offsets for b in range(0, width, min(width, 32))}
    return len(touched), -(-len(offsets) * width // 32)


def _reason(place: Address | None, width: int) -> str:
    if width == 0 or width >= FULL:
        return ""
    if place is None:
        return "its address is not in the text"
    if place.unknown:
        return f"the address holds a value of run time, {place.unknown}"
    lanes = place.lanes()
    if len(set(lanes)) == 1:
        return "one address for the whole warp"
    step = abs(lanes[1] - lanes[0])
    if step == 0:
        return "groups of threads share an address"
    if step == width:
        return f"neighbouring threads take neighbouring {width} bytes"
    runs = [n for n in place.loops if n in place.names and place.step(n) == place.size]
    aligned = place.multiple(fixed=[*runs])
    if aligned < FULL:
        spoil = [n for n in place.names if n not in runs and place.moves_by(n) < FULL]
        by = f", by {', '.join(spoil)}".replace("Idx_", "Idx.") if spoil else ""
        return f"aligned to {max(aligned, place.size)} bytes only{by}"
    if runs:
        return f"loop {runs[0]} takes neighbours one by one"
    return f"threads lie {step} bytes apart, each takes {width}"
