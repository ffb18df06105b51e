"""A model of how fast a GPU could be: counted work divided by public peak figures.

The longest of the times the parts of the chip need at their peak bounds a launch's time from below.
That is a model: it knows no latency, no cache, no instruction but the matrix ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .counters import Counters

_WAVEFRONT = 128  # bytes an SM's shared memory moves per cycle: CUDA programming guide, 32 banks


@dataclass(frozen=True)
class Chip:
    """Peak figures of one GPU.

    memory: bytes per second. clock: Hz, boost. matrix: dense operations per second by type of A,
    accumulated in float32 (int32).
    """

    name: str
    arch: str
    memory: float
    sms: int
    clock: float
    matrix: Mapping[str, float]
    source: str


def _rates(f16: float, **others: float) -> dict[str, float]:
    tera = {"f16": f16, "bf16": f16, **others}
    return {kind: rate * 1e12 for kind, rate in tera.items()}


CHIPS = {
    chip.arch: chip
    for chip in (
        Chip(
            "A100 SXM 80 GB", "sm_80", 2039e9, 108, 1.41e9,
            _rates(312, tf32=156, f64=19.5, int8=624, int4=1248),
            "NVIDIA A100 datasheet; SMs and clock: NVIDIA A100 architecture whitepaper",
        ),
        Chip(
            "RTX 4090", "sm_89", 1008e9, 128, 2.52e9,
            _rates(165.2, tf32=82.6, fp8=330.3, int8=660.6, int4=1321.2),
            "NVIDIA Ada GPU architecture whitepaper, appendix A",
        ),
        Chip(
            "H100 SXM", "sm_90a", 3350e9, 132, 1.98e9,
            _rates(989.4, tf32=494.7, f64=66.9, fp8=1978.9, int8=1978.9),
            "NVIDIA H100 architecture whitepaper; memory: NVIDIA H100 datasheet",
        ),
        Chip(
            "B200", "sm_100a", 8000e9, 148, 1.86e9,
            _rates(2250, tf32=1100, f64=40, fp8=4500, fp6=4500, fp4=9000, int8=4500),
            "NVIDIA Blackwell architecture technical brief, HGX B200; SMs: the driver's device"
            " attribute; clock: at which 8192 operations per SM and cycle make that f16 rate",
        ),
        Chip(
            "RTX 5090", "sm_120a", 1792e9, 170, 2.407e9,
            _rates(209.5, tf32=104.8, fp8=419, fp6=419, fp4=1676, int8=838),
            "NVIDIA RTX Blackwell GPU architecture whitepaper, appendix A",
        ),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Bound:
    """What the model says of one launch on one chip: seconds each resource needs at its peak."""

    chip: Chip
    seconds: Mapping[str, float]

    @property
    def limit(self) -> str:
        """The resource that needs longest."""
        return max(self.seconds, key=lambda resource: self.seconds[resource])

    def __str__(self) -> str:
        time = self.seconds[self.limit] * 1e6
        return f"model: at least {time:.3g} µs on {self.chip.name}, limited by {self.limit}"


def bound(counters: Counters, chip: Chip) -> Bound:
    """The model's lower bound of one launch.

    Global memory moves every byte once; SMs without a block do nothing. Raises ValueError for a
    matrix type the chip has no public rate of.
    """
    blocks = 1
    for size in counters.grid:
        blocks *= size
    busy = min(blocks, chip.sms) / chip.sms
    shared = counters.shared_read.wavefronts + counters.shared_written.wavefronts
    wavefronts = shared + counters.operand_bytes / _WAVEFRONT
    matrix = 0.0
    for name, operations in counters.matrix.items():
        kind = name.rsplit(" ", 1)[-1]
        if kind not in chip.matrix:
            known = ", ".join(chip.matrix)
            raise ValueError(f"matrix type on {chip.name}: got {kind}, expected one of {known}")
        matrix += operations / chip.matrix[kind]
    return Bound(
        chip,
        {
            "global memory": counters.unique_bytes / chip.memory,
            "shared memory": wavefronts / (chip.sms * chip.clock * busy),
            "matrix units": matrix / busy,
        },
    )
