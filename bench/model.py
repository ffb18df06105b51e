"""The whole model in figures: what a prefill takes on the CPU, what a decode step launches, what
its kernels move and take."""

from __future__ import annotations

from typing import Any

from . import launches, minimum, prefill


def measure() -> dict[str, list[dict[str, Any]]]:
    """Tables by name, see the modules they come from."""
    return {
        "prefill": prefill.measure(),
        "launches": launches.measure(),
        "kernels": minimum.measure(),
    }
