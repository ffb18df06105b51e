"""Host cost of a call, on the null driver: everything but the launch itself.

In one run, on one machine and with the same arguments (eight tensors, two sizes): our launcher with
all its checks, directly and through the torch op, without and with tensor maps; an empty TVM-FFI
function; torch's dispatcher, without and with an allocation; TileLang's generated host function;
Triton. Medians of many rounds, in which all take turns, of the calling thread's processor time:
nothing waits here, and on a shared machine others do not count. CuPy's RawKernel is not among them:
it cannot be made without a device.
"""

from __future__ import annotations

import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import tvm_ffi

import tileproof
from tileproof.bench.peers import launchers
from tileproof.codegen.build import build
from tileproof.codegen.target import Target
from tileproof.codegen.user import specialize

CALLS, ROUNDS = 500, 41
FLOOR = "TVM-FFI, empty function"
_FILE = Path(__file__).with_name("kernels.py")
PLAIN, MAPS = Target(f"{_FILE}:eight"), Target(f"{_FILE}:eight_maps")


def nanoseconds(ways: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median over rounds of the time of one call of each; the ways take turns in every round."""
    rounds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, call in ways.items():
            call()
            start = time.thread_time_ns()
            for _ in range(CALLS):
                call()
            rounds[name].append((time.thread_time_ns() - start) / CALLS)
    return {name: statistics.median(times) for name, times in rounds.items()}


def measure() -> list[dict[str, Any]]:
    """Nanoseconds of a call and its ratio to the floor, for each way of calling ``eight``."""
    specs = [specialize(PLAIN, None, "sm_90a"), specialize(MAPS, None, "sm_90a")]
    rows = torch.zeros(100, 64)
    inputs = tuple(rows.clone() for _ in range(7))
    tensors = (*inputs, torch.empty_like(rows))
    floor = tvm_ffi.get_global_func("testing.nop")
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        folder = Path(name)
        library = tileproof.load(build(specs, ["sm_90a"], folder / "b", jobs=1), backend="null")
        plain, maps = (library[s.op.name].kernel(s.symbol) for s in specs)
        dispatched, allocates = launchers.torch_floors(len(inputs), folder)
        eight, eight_maps = (getattr(torch.ops.tileproof, s.op.name) for s in specs)
        hosts = [
            launchers.tilelang_host(t.resolve(), folder / t.text.rpartition(":")[2])
            for t in (PLAIN, MAPS)
        ]
        ways: dict[str, Callable[[], object]] = {
            FLOOR: lambda: floor(*tensors),
            "launcher": lambda: plain(*tensors),
            "launcher, 7 tensor maps": lambda: maps(*tensors),
            "torch dispatcher, empty op": lambda: dispatched(*inputs),
            "torch dispatcher, op that allocates": lambda: allocates(*inputs),
            "torch op, allocates": lambda: eight(*inputs),
            "torch op, allocates, 7 tensor maps": lambda: eight_maps(*inputs),
            "library, allocates": lambda: library["eight"](*inputs),
            "TileLang's host function": lambda: hosts[0](*tensors),
            "TileLang's host function, 7 tensor maps": lambda: hosts[1](*tensors),
        }
        if importlib.util.find_spec("triton"):
            triton = launchers.triton_kernel()
            ways["Triton, kernel of a grid"] = lambda: triton(*tensors)
        times = nanoseconds(ways)
    return [
        {"case": k, "nanoseconds": round(v), "ratio": v / times[FLOOR]} for k, v in times.items()
    ]
