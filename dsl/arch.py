"""The GPU architectures kernels are compiled for, and the hard limits their proofs rely on."""

from __future__ import annotations

from dataclasses import dataclass

from .check import check

KIB = 1024


@dataclass(frozen=True)
class Arch:
    """One compile target.

    `smem` is the most shared memory one block may opt in to, in bytes; `smem_sm`, `warps` and
    `blocks` are what a multiprocessor holds at once (CUDA programming guide, "Features and
    Technical Specifications per Compute Capability"). `runs_on` lists the compute capabilities
    whose devices load this target's cubin: a plain ``sm_XY`` cubin runs on the same major version
    with an equal or higher minor; the ``a`` targets run on exactly one.
    """

    name: str
    smem: int
    smem_sm: int
    warps: int
    blocks: int
    runs_on: tuple[tuple[int, int], ...]
    cards: str

    max_threads = 1024


_TABLE = (
    Arch("sm_80", 163 * KIB, 164 * KIB, 64, 32, ((8, 0), (8, 6), (8, 7), (8, 9)), "A100, RTX 30"),
    Arch("sm_89", 99 * KIB, 100 * KIB, 48, 24, ((8, 9),), "L40S, RTX 40"),
    Arch("sm_90a", 227 * KIB, 228 * KIB, 64, 32, ((9, 0),), "H100, H200"),
    Arch("sm_100a", 227 * KIB, 228 * KIB, 64, 32, ((10, 0),), "B200, GB200"),
    Arch("sm_120a", 99 * KIB, 100 * KIB, 48, 24, ((12, 0),), "RTX 50, RTX PRO Blackwell"),
)
ARCHS = {a.name: a for a in _TABLE}
ALL = tuple(ARCHS)


def arch(name: str) -> Arch:
    """The architecture called `name`. Raises ContractError listing the known names."""
    check(name in ARCHS, "architecture", got=repr(name), expected=f"one of {', '.join(ARCHS)}")
    return ARCHS[name]
