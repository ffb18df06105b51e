"""Two bundles of the same kernels: what the newer one uses more of, as a gate for CI."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tileproof.dsl import arch

from .occupancy import occupancy
from .resources import MATRIX, Resources


@dataclass(frozen=True)
class Change:
    """One figure of one kernel that differs. `worse` if it fails the gate."""

    kernel: str
    arch: str
    what: str
    old: Any
    new: Any
    worse: bool


def compare(old: Mapping[str, Any], new: Mapping[str, Any], percent: float = 0.0) -> list[Change]:
    """Every difference between the kernels of two manifests, in the order of the old one.

    Worse is: a kernel that is gone, more spilled bytes, registers, shared memory, narrow accesses
    or fewer matrix instructions or resident warps, instructions or bytes of code that grew by more
    than `percent`, and a proof that no longer says PROVED.
    """
    before, after = dict(_rows(old)), dict(_rows(new))
    changes = []
    for key, row in before.items():
        if key not in after:
            changes.append(Change(key[0], key[1], "kernel", "there", "gone", True))
            continue
        for what, value in row.items():
            now = after[key][what]
            if now != value:
                worse = _worse(what, value, now, percent)
                changes.append(Change(key[0], key[1], what, value, now, worse))
    added = [key for key in after if key not in before]
    return changes + [Change(*key[:2], "kernel", "none", "new", False) for key in added]


_MORE_IS_BETTER = ("matrix instructions", "resident warps")
_GROW = ("instructions", "cubin bytes")


def _worse(what: str, old: Any, new: Any, percent: float) -> bool:
    if what == "proof":
        return bool(old == "PROVED")
    if what in _GROW:
        return bool(new > old * (1 + percent / 100))
    return bool(new < old if what in _MORE_IS_BETTER else new > old)


def _rows(manifest: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str, str], dict[str, Any]]]:
    for symbol, facts in manifest["specializations"].items():
        for name, built in facts["archs"].items():
            verdict = (built["proofs"] or {}).get("verdict") or "none"
            for used in built["resources"]:
                yield (symbol, name, used["kernel"]), _figures(Resources(**used), name, verdict)


def _figures(used: Resources, name: str, verdict: str) -> dict[str, Any]:
    return {
        "spilled bytes": used.spill_stores + used.spill_loads,
        "registers": used.registers,
        "shared memory": used.static_smem + used.dynamic_smem,
        "resident warps": occupancy(used, arch(name)).warps,
        "matrix instructions": sum(used.sass.get(family, 0) for family in MATRIX[name]),
        "narrow accesses": used.narrow,
        "instructions": used.instructions,
        "cubin bytes": used.cubin_bytes,
        "proof": verdict,
    }
