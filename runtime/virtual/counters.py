"""What launches move and compute, counted exactly: memory traffic, bank conflicts, matrix work."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

from .device import library, options

_UNITS = ("mma.sync", "wgmma", "tcgen05.mma")
_EVENTS = (
    *("copied_bytes", "bulk_bytes", "operand_bytes"),
    *("barriers", "mbarrier_waits", "atomics", "shuffles", "reductions"),
)
_TYPES = ("f64", "tf32", "f16", "bf16", "fp8", "fp6", "fp4", "int8", "int4")


@dataclass(frozen=True)
class GlobalTraffic:
    """Reads or writes of global memory.

    accesses: by whole warps, and boxes of bulk copies. bytes: that threads asked for.
    sectors, lines: 32 and 128 bytes long, once for every access that touches them.
    unique_bytes: touched at all; what no cache could save.
    """

    accesses: int = 0
    bytes: int = 0
    sectors: int = 0
    lines: int = 0
    unique_bytes: int = 0


@dataclass(frozen=True)
class SharedTraffic:
    """Reads or writes of shared memory.

    wavefronts: passes over the 32 banks of 4 bytes; a bulk copy takes one for 128 bytes.
    conflicts: wavefronts more than accesses of that width need.
    """

    accesses: int = 0
    bytes: int = 0
    wavefronts: int = 0
    conflicts: int = 0


@dataclass(frozen=True)
class Counters:
    """Of one launch, or of several added up; the same for every schedule.

    copied_bytes: by cp.async. bulk_bytes: by TMA and other bulk copies, into or out of shared
    memory. operand_bytes: of shared memory that wgmma and tcgen05.mma read. matrix: operations by
    instruction and type of A, a multiplication and an addition being two. atomics, mbarrier_waits:
    by thread; shuffles, reductions: by warp; barriers: completed.
    """

    kernel: str = ""
    grid: tuple[int, ...] = ()
    block: tuple[int, ...] = ()
    global_read: GlobalTraffic = GlobalTraffic()
    global_written: GlobalTraffic = GlobalTraffic()
    shared_read: SharedTraffic = SharedTraffic()
    shared_written: SharedTraffic = SharedTraffic()
    copied_bytes: int = 0
    bulk_bytes: int = 0
    operand_bytes: int = 0
    barriers: int = 0
    mbarrier_waits: int = 0
    atomics: int = 0
    shuffles: int = 0
    reductions: int = 0
    matrix: dict[str, int] = field(default_factory=dict)

    @property
    def global_bytes(self) -> int:
        """Bytes threads and copies read and write."""
        return self.global_read.bytes + self.global_written.bytes

    @property
    def sector_bytes(self) -> int:
        """Bytes of the sectors that accesses of warps touch: what L1 asks L2 for, at most."""
        return 32 * (self.global_read.sectors + self.global_written.sectors)

    @property
    def unique_bytes(self) -> int:
        """Bytes of global memory read at least once, plus those written."""
        return self.global_read.unique_bytes + self.global_written.unique_bytes

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Counting:
    """The launches counted so far, in order."""

    def __init__(self, handle: ctypes.c_void_p):
        self._handle = handle

    @property
    def launches(self) -> list[Counters]:
        count = library().vgpu_counting_launches(self._handle)
        return [_read(self._handle, index) for index in range(count)]

    def __del__(self) -> None:
        library().vgpu_counting_delete(self._handle)


@contextlib.contextmanager
def counting() -> Iterator[Counting]:
    """Counts the launches within the block, on this thread. Kernels built within are checked
    builds, which are the only ones that can be counted. Results do not change. Of nested blocks the
    innermost counts."""
    handle = library()
    counted = Counting(ctypes.c_void_p(handle.vgpu_counting_new()))
    with options(checked=True):
        outer = handle.vgpu_counting_use(counted._handle)
        try:
            yield counted
        finally:
            handle.vgpu_counting_use(outer)


def _read(handle: ctypes.c_void_p, index: int) -> Counters:
    words = (ctypes.c_uint64 * (2 * 5 + 2 * 4 + len(_EVENTS) + len(_UNITS) * len(_TYPES)))()
    sizes = (ctypes.c_uint32 * 6)()
    name = library().vgpu_counting_launch(handle, index, sizes, words, len(words))
    if name is None:
        raise RuntimeError("libvgpu counts other things than this version of tileproof reads")
    numbers = iter(words)
    global_read, global_written = (GlobalTraffic(*islice(numbers, 5)) for _ in range(2))
    shared_read, shared_written = (SharedTraffic(*islice(numbers, 4)) for _ in range(2))
    events = {name: next(numbers) for name in _EVENTS}
    matrix = {f"{unit} {kind}": next(numbers) for unit in _UNITS for kind in _TYPES}
    return Counters(
        name.decode(),
        tuple(sizes[:3]),
        tuple(sizes[3:]),
        global_read,
        global_written,
        shared_read,
        shared_written,
        matrix={kind: n for kind, n in matrix.items() if n},
        **events,
    )
