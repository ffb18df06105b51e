"""The virtual GPU beside Triton's interpreter: the same work, tiles and machine, in one run.

Both run a kernel without a GPU; the interpreter evaluates whole tiles with NumPy, the virtual GPU
executes the CUDA text thread by thread. Medians of a few rounds, compilation excluded. Results are
compared before anything is timed.
"""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from tileproof.codegen import virtual
from tileproof.dsl import strategies

ROUNDS = 3
ARCH = "sm_80"
# Of the largest element. fp16 (bf16): half a unit, 2^-11 (2^-8), on each side, twice over for other
# sum orders.
# fp32: far inside the 4096 * 2^-24 by which two orders of a row's sum may differ.
TOLERANCE = {torch.float16: 2.0**-9, torch.bfloat16: 2.0**-6, torch.float32: 2.0**-18}


@dataclass(frozen=True)
class Case:
    """One workload: `ours` and `peer` write the same outputs, the last `outputs` of `tensors`."""

    name: str
    tensors: tuple[torch.Tensor, ...]
    outputs: int
    ours: Callable[..., None]
    peer: Callable[..., None] | None
    flops: float = 0.0


def cases() -> list[Case]:
    """The workloads, with seeded inputs."""
    from tileproof.dsl import get

    from . import programs

    peers: Any = None
    if importlib.util.find_spec("triton"):
        from .peers import triton_kernels as peers
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
        return torch.randn(shape, generator=draw).to(dtype)

    def case(name: str, program: Any, inputs: list[torch.Tensor], flops: float, peer: str) -> Case:
        tensors = (*inputs, torch.empty_like(inputs[0]))
        run = virtual.compile(program, ARCH, checked=False)
        return Case(name, tensors, 1, run, getattr(peers, peer, None), flops)

    n, S, H, D = 1024, 1024, 8, 64
    wide = normal(4096, 4096, dtype=torch.float32)
    heads = [normal(S, H, D) for _ in range(3)]
    pre = get("mhc/pre").specialize(N=4, D=4096, act="bf16")
    M = 16
    drawn = strategies.inputs(pre, {"M": M}, 0)
    shapes = pre.bind(M=M)
    types = {a.name: getattr(torch, a.dtype.torch) for a in pre.args}
    arguments = [torch.from_numpy(v).to(types[name]) for name, v in drawn.items()]
    outputs = [torch.empty(shapes[a.name], dtype=types[a.name]) for a in pre.args[len(drawn) :]]
    return [
        case("GEMM fp16 1024³, tiles of 128", programs.gemm(n), [normal(n, n), normal(n, n)],
             2.0 * n**3, "gemm"),
        case("attention 1×1024×8×64", programs.attention(S, H, D), heads, 4.0 * S * S * H * D,
             "attention"),
        case("softmax 4096×4096", programs.softmax(4096, 4096), [wide], 0.0, "softmax"),
        Case(f"mhc/pre, hidden 4096, {M} tokens", (*arguments, *outputs), len(outputs),
             virtual.compile(pre, ARCH, checked=False), getattr(peers, "mhc_pre", None)),
    ]  # fmt: skip


def _agree(case: Case) -> None:
    """Raises RuntimeError where the two differ; without a peer, where an element is not written."""
    results = []
    for run in (case.ours, case.peer):
        outputs = case.tensors[-case.outputs :]
        for output in outputs:
            output.fill_(torch.nan)
        if run is not None:
            run(*case.tensors)
            results.append([o.clone() for o in outputs])
    for ours, peer in zip(results[0], results[-1], strict=True):
        error = (ours.double() - peer.double()).abs().max() / peer.double().abs().max()
        if not error <= TOLERANCE.get(ours.dtype, 0.0):
            raise RuntimeError(f"{case.name}: results differ by {error:.1e} of the largest")


def _seconds(run: Callable[..., None], tensors: tuple[torch.Tensor, ...]) -> float:
    rounds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        run(*tensors)
        rounds.append(time.perf_counter() - start)
    return statistics.median(rounds)


def measure() -> list[dict[str, Any]]:
    """Seconds of each workload here and in Triton's interpreter (None without Triton)."""
    rows = []
    for case in cases():
        _agree(case)
        ours = _seconds(case.ours, case.tensors)
        peer = None if case.peer is None else _seconds(case.peer, case.tensors)
        rows.append(
            {
                "case": case.name,
                "seconds": ours,
                "gflops": case.flops / ours / 1e9 if case.flops else None,
                "triton_seconds": peer,
                "ratio": None if peer is None else peer / ours,
            }
        )
    return rows
