"""What a compiled kernel uses of the GPU, and the limits beyond which a build fails."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from tileproof.dsl import Arch, check

from .sass import FULL

# Instructions worth counting, by what they say about a kernel: matrix units, asynchronous copies,
# barriers, local memory (spills), atomics, and the width of plain global accesses.
FAMILIES = (
    *("HMMA", "IMMA", "QMMA", "OMMA", "DMMA", "HGMMA", "QGMMA", "IGMMA"),
    *("UTCHMMA", "UTCQMMA", "UTCIMMA", "UTCOMMA"),
    *("LDGSTS", "UTMALDG", "UTMASTG", "SYNCS", "BAR", "LDSM", "STSM"),
    *("LDL", "STL", "LDG", "STG", "LDS", "STS", "ATOM", "ATOMG", "ATOMS", "RED", "SHFL", "FFMA"),
)
_FIFTH_GENERATION = ("UTCHMMA", "UTCQMMA", "UTCIMMA", "UTCOMMA")
_WARP = ("HMMA", "IMMA", "QMMA", "OMMA")
# TileLang uses mma.sync on Blackwell unless a kernel asks for tcgen05, so both count there.
MATRIX: Mapping[str, tuple[str, ...]] = {
    "sm_80": _WARP,
    "sm_89": _WARP,
    "sm_90a": ("HGMMA", "QGMMA", "IGMMA", *_WARP),
    "sm_100a": (*_FIFTH_GENERATION, *_WARP),
    "sm_120a": _WARP,
}


@dataclass(frozen=True)
class Resources:
    """One kernel on one architecture.

    `registers` per thread; `spill_stores`, `spill_loads`, `stack`, `static_smem`, `dynamic_smem`
    and `cubin_bytes` in bytes; `instructions` in total and `sass` per family of :data:`FAMILIES`;
    `widths` of global accesses: how many instructions move so many bytes a thread, ``LDG.16``.
    """

    kernel: str
    registers: int
    spill_stores: int
    spill_loads: int
    stack: int
    static_smem: int
    dynamic_smem: int
    threads: int
    instructions: int
    sass: Mapping[str, int]
    cubin_bytes: int
    widths: Mapping[str, int] = field(default_factory=dict)

    @property
    def narrow(self) -> int:
        """Instructions on global memory that move less than 16 bytes a thread."""
        sizes = {name: name.rpartition(".")[2] for name in self.widths}
        small = [name for name, size in sizes.items() if size != "bulk" and int(size) < FULL]
        return sum(self.widths[name] for name in small)

    def to_json(self) -> dict[str, Any]:
        """As plain data for a manifest."""
        return asdict(self)


_FUNCTION = re.compile(r"Compiling entry function '(\w+)'")
_SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")
_SMEM = re.compile(r"(\d+) bytes smem")


def from_ptxas(log: str) -> dict[str, dict[str, int]]:
    """Registers, spills, stack and static shared memory per kernel from ``ptxas -v`` output."""
    found: dict[str, dict[str, int]] = {}
    current: dict[str, int] = {}
    for line in log.splitlines():
        if m := _FUNCTION.search(line):
            current = found.setdefault(m[1], {"static_smem": 0})
        if m := _SPILLS.search(line):
            current |= {
                "stack": int(m[1]),
                "spill_stores": int(m[2]),
                "spill_loads": int(m[3]),
            }
        if m := _REGISTERS.search(line):
            current["registers"] = int(m[1])
            if smem := _SMEM.search(line):
                current["static_smem"] = int(smem[1])
    return found


def gate(used: Resources, arch: Arch, *, op: str, matrix: bool) -> None:
    """Fail unless the kernel fits `arch` and does not spill.

    `matrix` asks for at least one matrix instruction. Raises ContractError in one sentence.
    """
    where = f"{op} on {arch.name}"
    spilled = used.spill_stores + used.spill_loads
    check(spilled == 0, f"{where}: spilled bytes", got=spilled, expected=0)
    smem = used.static_smem + used.dynamic_smem
    expected = f"at most {arch.smem} bytes a block"
    check(smem <= arch.smem, f"{where}: shared memory", got=smem, expected=expected)
    most = Arch.max_threads
    check(used.threads <= most, f"{where}: threads", got=used.threads, expected=f"at most {most}")
    # The register file holds 65536 and hands them to a warp in units of 256.
    per_block = -(-used.registers * 32 // 256) * 256 * -(-used.threads // 32)
    expected = "at most 65536 a block"
    check(per_block <= 65536, f"{where}: registers", got=per_block, expected=expected)
    if matrix:
        wanted = MATRIX[arch.name]
        count = sum(used.sass.get(name, 0) for name in wanted)
        expected = f"at least one of {', '.join(wanted)}"
        check(count > 0, f"{where}: matrix instructions", got="none", expected=expected)
