"""How many warps of a kernel a multiprocessor holds at once, and why not more."""

from __future__ import annotations

from dataclasses import dataclass

from tileproof.dsl import Arch

from .resources import Resources

# CUDA occupancy rules, the same on all five architectures: 65536 registers a multiprocessor in four
# equal parts, given to a warp in units of 256; shared memory in units of 128 bytes, of which every
# block needs 1 KiB more than it asked for.
_REGISTERS, _REGISTER_UNIT, _PARTS = 65536, 256, 4
_SMEM_UNIT, _SMEM_RESERVED = 128, 1024


@dataclass(frozen=True)
class Occupancy:
    """`blocks` and `warps` resident at once, `most` the warps the architecture could hold, `limit`
    what a further block would lack."""

    blocks: int
    warps: int
    most: int
    limit: str

    @property
    def share(self) -> float:
        """Resident warps of those possible, 0 to 1."""
        return self.warps / self.most


def occupancy(used: Resources, arch: Arch) -> Occupancy:
    """Of one kernel at the dynamic shared memory it is launched with."""
    warps = -(-used.threads // 32)
    per_warp = _round_up(max(used.registers, 1) * 32, _REGISTER_UNIT)
    smem = _round_up(used.static_smem + used.dynamic_smem, _SMEM_UNIT) + _SMEM_RESERVED
    limits = {
        "registers": _REGISTERS // _PARTS // per_warp * _PARTS // warps,
        "shared memory": arch.smem_sm // smem,
        "warps": arch.warps // warps,
        "blocks": arch.blocks,
    }
    blocks = min(limits.values())
    limit = next(name for name, most in limits.items() if most == blocks)
    return Occupancy(blocks, blocks * warps, arch.warps, limit)


def _round_up(number: int, unit: int) -> int:
    return -(-number // unit) * unit
