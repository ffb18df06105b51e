"""Our kernels beside public TileLang kernels of the same purpose, counted by the virtual GPU.

The peers' sources are no part of this project. ``--peers DIR`` names a folder with checkouts of
their repositories; without it only our side is counted. Both sides get the same problem: the same
sizes, scores and lists of indices. Nothing is timed, so the figures repeat on any machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

ARCH = "sm_90a"


@dataclass(frozen=True)
class Run:
    """One kernel of a side: an op's name or ``REPOSITORY/FILE.py:NAME``, and what it runs on.

    `static` are the op's static sizes, types and params, or a factory's arguments; `dims` the other
    sizes; `given` the tensors whose data decide how much is moved. The rest is drawn.
    """

    what: str
    static: Mapping[str, Any]
    dims: Mapping[str, int]
    given: Mapping[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """The same work twice, each a sequence of launches."""

    name: str
    ours: Sequence[Run]
    peer: Sequence[Run]


def cases() -> list[Case]:
    """V4-Flash's sizes, as many tokens as take seconds here."""
    return [_attention(), _fp8(), _act_quant(), *_mhc(), _topk()]


def _attention() -> Case:
    M, H, D, W, K, S = 4, 64, 512, 128, 512, 4096
    draw = torch.Generator().manual_seed(0)
    chosen = torch.stack([torch.randperm(S, generator=draw)[:K] for _ in range(M)]).int()
    near = torch.arange(W).expand(M, W).int().contiguous()
    both = torch.cat([near + S, chosen], 1)[None]  # the peer has one tensor for both
    ours = Run(
        "attention/sparse",
        {"H": H, "D": D, "act": "bf16"},
        {"M": M, "S": W, "W": W, "T": S, "K": K},
        {"near": near, "chosen": chosen},
    )
    peer = Run(
        "tilelang/examples/deepseek_v4/sparse_attn_fwd_sm90.py:sparse_attn_fwd",
        {"batch": 1, "heads": H, "seq_len": M, "seq_len_kv": S + W, "dim": D, "topk": W + K},
        {},
        {"TopkIndices": both.contiguous()},
    )
    return Case(f"attention, {M} tokens × {H} × {D}, {W + K} entries", [ours], [peer])


def _fp8() -> Case:
    M, N, K = 256, 1024, 4096
    ours = Run("gemm/fp8", {"K": K, "out": "bf16"}, {"M": M, "N": N})
    types = {"in_dtype": "float8_e4m3fn", "out_dtype": "bfloat16", "accum_dtype": "float32"}
    file = "tilelang/examples/deepseek_deepgemm/example_deepgemm_fp8_2xAcc.py"
    peer = Run(f"{file}:tl_gemm", {"M": M, "N": N, "K": K, "block_N": 128, **types}, {})
    return Case(f"fp8 product, {M} × {N} × {K}", [ours], [peer])


def _act_quant() -> Case:
    M, K = 256, 4096
    ours = Run("quant/fp8_cast", {"K": K, "B": 128, "act": "bf16"}, {"M": M})
    file = "tilelang/examples/deepseek_v4/act_quant.py"
    peer = Run(f"{file}:fp8_quant_kernel", {"N": K, "block_size": 128}, {"M": M})
    return Case(f"fp8 cast 1×128, {M} × {K}", [ours], [peer])


def _mhc() -> list[Case]:
    M, N, D = 256, 4, 4096
    file, sizes = "tilelang/examples/deepseek_mhc/example_mhc", {"num_tokens": M}
    streams = {"N": N, "D": D, "act": "bf16"}
    post = Case(
        f"mHC post, {M} × {N} × {D}",
        [Run("mhc/post", streams, {"M": M})],
        [Run(f"{file}_post.py:mhc_post_tilelang", {"hc": N, "hidden": D}, sizes)],
    )
    mixing = {"rms_eps": 1e-6, "hc_pre_eps": 1e-6, "hc_sinkhorn_eps": 1e-6,
              "hc_post_mult_value": 2.0, "sinkhorn_repeat": 20, "n_splits": 1}  # fmt: skip
    wide = {"hc_mult3": N * (N + 2), "hc_hidden_size": N * D}
    pre = Case(
        f"mHC pre, {M} × {N} × {D}",
        [
            Run("mhc/prenorm_gemm", {"N": N, "D": D, "C": N * (N + 2), "act": "bf16"}, {"M": M}),
            Run("mhc/sinkhorn", {"N": N, "D": D}, {"M": M}),
            Run("mhc/collapse", streams, {"M": M}),
        ],
        [
            Run(f"{file}_pre.py:mhc_pre_gemm_sqrsum_tilelang", wide, sizes),
            Run(f"{file}_pre.py:mhc_pre_big_fuse_tilelang", {"hidden_size": D, **mixing}, sizes),
        ],
    )
    return [post, pre]


def _topk() -> Case:
    M, S, K = 8, 32768, 512
    score = torch.randn(M, S, generator=torch.Generator().manual_seed(0))
    every = torch.full((M,), S, dtype=torch.int32)
    ours = Run("indexer/topk", {"K": K}, {"M": M, "S": S}, {"score": score, "count": every})
    peer = Run(
        "tilelang/examples/deepseek_v32/topk_selector.py:tl_topk_impl",
        {"topk": K},
        {"batch": M, "seq_len": S},
        {"input": score, "starts": torch.zeros_like(every), "ends": every},
    )
    return Case(f"top-{K} of {S}, {M} rows", [ours], [peer])


def measure(peers: Path | None = None) -> list[dict[str, Any]]:
    """A row per case and side, of all its launches.

    MB of the sectors that accesses ask for, and touched at all; thousands of passes over shared
    memory's banks, operands of wgmma among them, and how many of them are conflicts; operations of
    matrix units; microseconds, the roofline model's lower bound. Raises ContractError where `peers`
    lacks a source.
    """
    rows = []
    for case in cases():
        sides = [("tileproof", case.ours)]
        if peers is not None:
            sides.append(("peer", case.peer))
        rows += [_row(case.name, side, runs, peers) for side, runs in sides]
    return rows


def _row(name: str, side: str, runs: Sequence[Run], peers: Path | None) -> dict[str, Any]:
    from tileproof.runtime import virtual

    launches = [launch for run in runs for launch in counted(run, peers)[0]]
    chip = virtual.CHIPS[ARCH]
    bounds = [virtual.bound(launch, chip) for launch in launches]
    shared = [s for n in launches for s in (n.shared_read, n.shared_written)]
    return {
        "case": name,
        "side": side,
        "MB": sum(n.sector_bytes for n in launches) / 1e6,
        "touched": sum(n.unique_bytes for n in launches) / 1e6,
        "kwaves": (sum(s.wavefronts for s in shared) + sum(n.operand_bytes for n in launches) / 128)
        / 1e3,
        "conflicts": sum(s.conflicts for s in shared) / 1e3,
        "GFLOP": sum(sum(n.matrix.values()) for n in launches) / 1e9,
        "us": sum(b.seconds[b.limit] for b in bounds) * 1e6,
    }


def counted(run: Run, peers: Path | None = None) -> tuple[Sequence[Any], dict[str, Any]]:
    """What the launches of one kernel counted, and its arguments by name."""
    from tileproof.codegen.lower import lower
    from tileproof.codegen.target import resolve_target
    from tileproof.codegen.virtual import VirtualKernel
    from tileproof.dsl import Facts, get
    from tileproof.runtime import virtual
    from tileproof.sanitizer.inputs import draw

    sizes = {name: (size, size) for name, size in run.dims.items()}
    if ".py:" in run.what:
        lowered = lower(resolve_target(f"{peers}/{run.what}", run.static, ARCH), ARCH)
        facts = Facts(dims=sizes)
    else:
        spec = get(run.what).specialize(**run.static)
        lowered = lower(spec, ARCH)
        known = Facts.of(spec)
        facts = replace(known, dims={**known.dims, **sizes})
    kernel = VirtualKernel(lowered, checked=True)
    drawn = draw(lowered.parameters, kernel.written(), facts, 0, 0).arguments
    names = [p.name for p in lowered.parameters]
    arguments = {n: run.given.get(n, value) for n, value in zip(names, drawn, strict=True)}
    with virtual.counting() as found:
        kernel(*arguments.values())
    return found.launches, arguments
