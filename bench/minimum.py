"""Bytes our kernels move beside the least their contracts allow, and what they take of the device.

The least is every input read once and every output written once; of a tensor that others index,
only the rows that they list. Counted on the virtual GPU for sm_90a at the sizes of V4-Flash and
V4-Pro, with few tokens and experts; registers and spills are ptxas's.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import torch

from tileproof.dsl import Op, Specialization

from .counters import ARCH, Run, counted

# At most so many of what the least grows in step with: tokens, entries, tiles, experts.
MOST = {"M": 16, "N": 16, "Q": 4, "E": 4, "MK": 64}


def measure(models: Collection[str] = ("flash", "pro"), ops: Collection[str] = ()) -> list[Any]:
    """A row for each op and model; `ops` are all of the library by default.

    MB: the least; `asked`, `touched`: sectors of all accesses, and touched at all, over the least.
    `registers` of a thread, `shared` and `spilled` bytes, of the launch with most.
    """
    from tileproof.dsl import load_library

    chosen = {name: op for name, op in load_library().items() if not ops or name in ops}
    return [_row(op, model) for op in chosen.values() for model in models]


def problem(op: Op, model: str) -> tuple[Specialization, Run]:
    """The op at the sizes of a model, its first types, with as much to do as :data:`MOST` says."""
    specs, points = op.shape_set(model)
    least = {d: n for d, n in MOST.items() if op.dims.get(d) and not op.dims[d].static}
    compressor = op.name.startswith("compressor/")
    if not compressor:
        least.pop("N", None)  # rows of weights, not entries
    dims = {d: min(n, least.get(d, n)) for d, n in points[0].items()}
    spec = specs[0]
    own = {d: n for d, n in spec.dims.items() if op.dims[d].derived is None}
    if "E" in own and any(a.shape[0] == "E" and len(a.shape) == 3 for a in op.args):
        own["E"] = min(own["E"], MOST["E"])  # experts, whose weights are gigabytes
    static = {**own, **spec.types, **spec.params}
    spec = op.specialize(**static)
    given = {}
    for arg in op.args:
        if arg.name == "count":  # all columns there are
            given["count"] = torch.full((dims["M"],), dims["S"], dtype=torch.int32)
        elif arg.name == "first":
            given["first"] = torch.zeros(dims["M"], dtype=torch.int32)
        elif arg.name == "place" and arg.role == "in":  # as routing gives them: each pair its row
            M, K, R = dims["M"], spec.dims["K"], spec.dims["R"]
            order = torch.randperm(dims["Q"] * R, generator=torch.Generator().manual_seed(0))
            given["place"] = order[: M * K].view(M, K).int()
        elif arg.name == "source" and compressor:
            # the windows of a prompt, one after the other; -2 - i is its token i, -1 is before it
            A, L, N = spec.dims["A"], spec.dims["L"], dims["N"]
            dims["M"] = N * A
            token = A * (torch.arange(N)[:, None] + 1) - L + torch.arange(L)
            given["source"] = torch.where(token < 0, -1, -2 - token).int()
    return spec, Run(op.name, static, dims, given)


def least(op: Op, arguments: Mapping[str, Any]) -> int:
    """Bytes of all `arguments` once; where others index their leading dims, of the rows they list.

    `arguments` are the kernel's, in the order of its own signature.
    """
    tensors = [value for value in arguments.values() if isinstance(value, torch.Tensor)]
    places = op.order or range(len(op.args))
    held = {arg.name: tensors[place] for arg, place in zip(op.args, places, strict=True)}
    total = 0
    for arg in op.args:
        tensor = held[arg.name]
        elements = tensor.numel()
        for n in range(1, len(arg.shape)):
            most = "*".join(arg.shape[:n]) + "-1"
            lists = [
                held[a.name].flatten()
                for a in op.args
                if a.values is not None and a.values.hi == most
            ]
            if lists:
                rows = torch.cat([i[i >= 0].long() for i in lists]).unique()
                elements = len(rows) * math.prod(tensor.shape[n:])
        total += elements * tensor.element_size()
    return total


def _row(op: Op, model: str) -> dict[str, Any]:
    from tileproof.codegen.build import compile_unit

    spec, run = problem(op, model)
    launches, arguments = counted(run)
    needed = least(op, arguments)
    used = compile_unit(spec, ARCH).resources
    return {
        "case": f"{op.name} {model}",
        "MB": needed / 1e6,
        "asked": sum(n.sector_bytes for n in launches) / needed,
        "touched": sum(n.unique_bytes for n in launches) / needed,
        "registers": max(r.registers for r in used),
        "shared": max(r.static_smem + r.dynamic_smem for r in used),
        "spilled": max(r.spill_stores + r.spill_loads for r in used),
    }
