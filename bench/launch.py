"""Host cost of a call, on the null driver: everything but the launch itself.

Compares, in one run and on one machine, our launcher with all its checks (direct, through the
library with its allocation, through the torch op) with an empty TVM-FFI function that takes the
same arguments. Medians of many rounds; on a shared machine look at the ratios.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def measure() -> list[dict[str, Any]]:
    """Nanoseconds of a call and its ratio to the floor, for each way of calling ``mhc/post``
    (4 inputs, 1 output, 7 tokens)."""
    spec = get("mhc/post").specialize(N=4, D=64, act="bf16")
    with tempfile.TemporaryDirectory() as folder:
        library = tileproof.load(build([spec], ["sm_80"], Path(folder) / "b"), backend="null")
        direct = library.mhc_post.kernel(spec.symbol)
    x = torch.zeros(7, 4, 64, dtype=torch.bfloat16)
    y, out = torch.zeros(7, 64, dtype=torch.bfloat16), torch.empty_like(x)
    inputs = (x, y, torch.zeros(7, 4), torch.zeros(7, 4, 4))
    floor = tvm_ffi.get_global_func("testing.nop")
    ways: dict[str, Callable[[], object]] = {
        "TVM-FFI, empty function": lambda: floor(*inputs, out),
        "launcher, all checks": lambda: direct(*inputs, out),
        "torch.empty_like": lambda: torch.empty_like(x),
        "library, allocates": lambda: library.mhc_post(*inputs),
        "torch op, allocates": lambda: torch.ops.tileproof.mhc_post(*inputs),
    }
    times = {name: nanoseconds(call) for name, call in ways.items()}
    least = times["TVM-FFI, empty function"]
    return [{"case": k, "nanoseconds": round(v), "ratio": v / least} for k, v in times.items()]
