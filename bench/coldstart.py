"""From ``import torch`` to the end of the first call, in fresh processes.

Ours loads the whole library, built before, and calls one op. TileLang and Triton compile one small
kernel, with empty caches and with filled ones; without a device neither can load what it compiled,
so their launch is left out, in their favour. Importing TVM-FFI alone is the floor of ours. Medians
of five, of the cold compilers one run. Python keeps its bytecode, as it does of what is installed.
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

from tileproof.codegen.build import build, default_specs

_FLOOR = """
    import os, time, torch
    start, used = time.perf_counter(), sum(os.times()[:4])
    import tvm_ffi
    print(time.perf_counter() - start, sum(os.times()[:4]) - used)
"""
_OURS = """
    import os, sys, time, torch
    start, used = time.perf_counter(), sum(os.times()[:4])
    import tileproof
    library = tileproof.load(sys.argv[1], backend=sys.argv[2], arch="sm_90a")
    x = torch.zeros(4, 512, dtype=torch.bfloat16)
    library.norm_rmsnorm_unweighted(x)
    print(time.perf_counter() - start, sum(os.times()[:4]) - used)
"""
_TILELANG = """
    import os, time, torch
    start, used = time.perf_counter(), sum(os.times()[:4])
    import tilelang
    import tilelang.language as T
    from tilelang import tvm

    @T.prim_func
    def double(x: T.Tensor((4, 4096), "float32"), y: T.Tensor((4, 4096), "float32")):
        with T.Kernel(4, threads=128) as i:
            for j in T.Parallel(4096):
                y[i, j] = 2 * x[i, j]

    tilelang.compile(double, target=tvm.target.Target({"kind": "cuda", "arch": "sm_90a"}))
    print(time.perf_counter() - start, sum(os.times()[:4]) - used)
"""
_TRITON = """
    import os, time, torch
    start, used = time.perf_counter(), sum(os.times()[:4])
    import triton, triton.language as tl
    from triton.backends.compiler import GPUTarget

    @triton.jit
    def double(x, y, D: tl.constexpr):
        at = tl.program_id(0) * D + tl.arange(0, D)
        tl.store(y + at, 2 * tl.load(x + at))

    types = {"x": "*fp32", "y": "*fp32", "D": "constexpr"}
    source = triton.compiler.ASTSource(double, types, {(2,): 4096})
    triton.compile(source, target=GPUTarget("cuda", 90, 32))
    print(time.perf_counter() - start, sum(os.times()[:4]) - used)
"""


Times = tuple[float, float]


def seconds(script: str, folder: Path, *arguments: str, **environment: str) -> Times:
    """What a script prints: its own seconds on the clock and of processors, its children's too.

    Raises RuntimeError with what it says if it fails.
    """
    path = folder / "case.py"  # Triton reads the source of its kernels from a file
    path.write_text(textwrap.dedent(script))
    done = subprocess.run(
        [sys.executable, str(path), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "", **environment},
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    clock, processor = done.stdout.split()[-2:]
    return float(clock), float(processor)


def measure() -> list[dict[str, Any]]:
    """Milliseconds of each case; `cold` with empty caches, where there is such a thing."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = str(build(default_specs(), ["sm_90a"], folder / "bundle"))
        times = [seconds(_FLOOR, folder) for _ in range(6)][1:]
        rows.append(_row("floor: import tvm_ffi", None, times))
        for backend, what in (("null", "load all, call one"), ("virtual", "the same, executed")):
            times = [seconds(_OURS, folder, bundle, backend) for _ in range(6)][1:]
            rows.append(_row(f"tileproof: {what}", None, times))
        peers = [("TileLang", _TILELANG, "TILELANG_CACHE_DIR")]
        if importlib.util.find_spec("triton"):
            peers.append(("Triton", _TRITON, "TRITON_CACHE_DIR"))
        for peer, script, variable in peers:
            cache = {variable: str(folder / peer)}
            cold = seconds(script, folder, **cache)
            times = [seconds(script, folder, **cache) for _ in range(5)]
            rows.append(_row(f"{peer}: compile one", cold, times))
    return rows


def _row(case: str, cold: Times | None, times: list[Times]) -> dict[str, Any]:
    clock, processor = (round(1000 * statistics.median(t)) for t in zip(*times, strict=True))
    cold_ms = None if cold is None else round(1000 * cold[0])
    return {"case": case, "cold_ms": cold_ms, "warm_ms": clock, "warm_cpu_ms": processor}
