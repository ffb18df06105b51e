"""Host cost of a call, on the null driver: everything but the launch itself.

    python bench/launch.py [--json]

Compares, in one run and on one machine, our launcher with all its checks (direct, through the
library with its allocation, through the torch op) with an empty TVM-FFI function that takes the
same arguments. Medians of many rounds; on a shared machine look at the ratios.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import tvm_ffi

import tileproof
from tileproof.codegen.build import build
from tileproof.dsl import get

CALLS, ROUNDS = 2000, 15


def nanoseconds(call: Callable[[], object]) -> float:
    """Median over rounds of the time of one call."""
    rounds = []
    for _ in range(ROUNDS):
        start = time.perf_counter_ns()
        for _ in range(CALLS):
            call()
        rounds.append((time.perf_counter_ns() - start) / CALLS)
    return statistics.median(rounds)


def measure() -> dict[str, float]:
    """Nanoseconds per call by way of calling ``mhc/post`` (4 inputs, 1 output, 7 tokens)."""
    spec = get("mhc/post").specialize(N=4, D=64, act="bf16")
    with tempfile.TemporaryDirectory() as folder:
        library = tileproof.load(build([spec], ["sm_80"], Path(folder) / "b"), backend="null")
        direct = library.mhc_post.kernel(spec.symbol)
    x = torch.zeros(7, 4, 64, dtype=torch.bfloat16)
    y, out = torch.zeros(7, 64, dtype=torch.bfloat16), torch.empty_like(x)
    inputs = (x, y, torch.zeros(7, 4), torch.zeros(7, 4, 4))
    floor = tvm_ffi.get_global_func("testing.nop")
    return {
        "TVM-FFI, empty function": nanoseconds(lambda: floor(*inputs, out)),
        "launcher, all checks": nanoseconds(lambda: direct(*inputs, out)),
        "torch.empty_like": nanoseconds(lambda: torch.empty_like(x)),
        "library, allocates": nanoseconds(lambda: library.mhc_post(*inputs)),
        "torch op, allocates": nanoseconds(lambda: torch.ops.tileproof.mhc_post(*inputs)),
    }


def main() -> None:
    """Print the table, or JSON."""
    times = measure()
    if "--json" in sys.argv[1:]:
        print(json.dumps(times, indent=1))
        return
    floor = times["TVM-FFI, empty function"]
    for name, value in times.items():
        print(f"{name:26} {value:8.0f} ns  {value / floor:6.2f} x")


if __name__ == "__main__":
    main()
