"""The TileLang programs of `programs/`, what is true of their arguments, and what they compute.

An oracle takes the arguments by name and gives, per output, the exact value and a bound on the
error in float64 (None: the bits must agree). The bounds follow from the formats: u is half the
distance of two neighbouring numbers near 1, and a sum of n float32 terms errs by n u of the sum of
their magnitudes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tileproof.codegen.lower import Lowered, lower
from tileproof.codegen.target import resolve_target
from tileproof.dsl import Facts
from tileproof.sanitizer.inputs import Draw, draw

FOLDER = Path(__file__).parent / "programs"
U32, U16, UB16 = 2.0**-24, 2.0**-11, 2.0**-8
Expected = dict[str, tuple[torch.Tensor, torch.Tensor | None]]


@dataclass(frozen=True)
class Program:
    """`target` is FILE:NAME; `archs` are those whose texts of it differ in kind."""

    target: str
    oracle: Callable[[Mapping[str, Any]], Expected]
    archs: tuple[str, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    args: Mapping[str, Any] = field(default_factory=dict)

    def lowered(self, arch: str) -> Lowered:
        return _lowered(self.target, tuple(self.args.items()), arch)

    def draw(self, lowered: Lowered, written: set[str], number: int) -> Draw:
        facts = Facts.from_dict(self.facts)
        return draw(lowered.parameters, written, facts, 0, number)


@functools.cache
def _lowered(target: str, args: tuple[tuple[str, Any], ...], arch: str) -> Lowered:
    return lower(resolve_target(f"{FOLDER}/{target}", dict(args)), arch)


def _product(a: torch.Tensor, b: torch.Tensor, unit: float, start: Any = 0) -> Any:
    """a b + start with float32 sums, rounded once to a type of this unit."""
    a, b = a.double(), b.double()
    want = a @ b + start
    terms = a.shape[-1] + 1
    return want, terms * 2 * U32 * (a.abs() @ b.abs() + abs(start)) + unit * want.abs()


def splitk(v: Mapping[str, Any]) -> Expected:
    return {"C": _product(v["A"], v["B"], U32, v["C"].double())}


def gemm_nt(v: Mapping[str, Any]) -> Expected:
    unit = {torch.float32: U32, torch.bfloat16: UB16}[v["C"].dtype]
    return {"C": _product(v["A"], v["B"].T, unit)}


def gemm_nn(v: Mapping[str, Any]) -> Expected:
    return {"C": _product(v["A"], v["B"], U16)}


def dequant_gemm(v: Mapping[str, Any]) -> Expected:
    packed = v["B"].int()
    b = torch.stack([packed & 15, packed >> 4], -1).flatten(1) - 8
    want, bound = _product(v["A"], b.T, 0)
    scale = v["Scale"].double()
    return {"C": (want * scale, bound * scale.abs() + U32 * (want * scale).abs())}


def fp8_gemm(v: Mapping[str, Any]) -> Expected:
    a = v["A"].double() * v["ScaleA"].double().repeat_interleave(64, 1)
    b = v["B"].double() * v["ScaleB"].double().repeat_interleave(64, 0).repeat_interleave(64, 1)
    return {"C": _product(a, b.T, UB16)}


def flash_attention(v: Mapping[str, Any]) -> Expected:
    q, k, values = (v[name].double().transpose(1, 2) for name in ("Q", "K", "V"))
    scores = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5
    above = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    weights = scores.masked_fill(above, -torch.inf).softmax(-1)
    want = weights @ values
    # Weights are rounded to float16; their sum is not.
    bound = 2 * U16 * (weights @ values.abs()) + U16 * want.abs()
    return {"Output": (want.transpose(1, 2), bound.transpose(1, 2))}


def linear_attention(v: Mapping[str, Any], chunk: int = 32) -> Expected:
    q, k, values = (v[name].double() for name in ("Q", "K", "V"))
    scores, size = (q @ k.transpose(1, 2)).tril(), (q.abs() @ k.abs().transpose(1, 2)).tril()
    # Scores within a chunk and the state before it are rounded to float16, which overflows nothing.
    return {"Output": (scores @ values, 2 * U16 * (size @ values.abs()))}


def softmax(v: Mapping[str, Any]) -> Expected:
    x = v["x"].double()
    want = x.softmax(1)
    # exp errs by the rounding of its argument and 2 u of its own; the sum of D of them by D u.
    return {"y": (want, (x.shape[1] + 8 + 2 * x.abs().amax()) * U32 * want)}


def gather(v: Mapping[str, Any]) -> Expected:
    index = v["index"].long()
    rows = v["table"][index.clamp_min(0)]
    return {"y": (torch.where(index[:, None] >= 0, rows, torch.zeros_like(rows)), None)}


def conv(v: Mapping[str, Any]) -> Expected:
    x, w = v["X"].double(), v["Filter"].double()
    filters = w.view(3, 3, *w.shape[1:]).permute(3, 2, 0, 1)

    def apply(x: torch.Tensor, filters: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.conv2d(x.permute(0, 3, 1, 2), filters, padding=1)

    want = apply(x, filters).permute(0, 2, 3, 1) + v["Bias"].double()
    size = apply(x.abs(), filters.abs()).permute(0, 2, 3, 1) + v["Bias"].double().abs()
    want = want.clamp_min(0)
    return {"Y": (want, 9 * 32 * 2 * U32 * size + UB16 * want)}


def histogram(v: Mapping[str, Any]) -> Expected:
    counts = v["counts"]
    return {"counts": (counts + torch.bincount(v["x"], minlength=len(counts)).int(), None)}


def topk(v: Mapping[str, Any]) -> Expected:
    x, k = v["x"], v["values"].shape[1]
    order = x.sort(dim=1, descending=True, stable=True)
    return {"values": (order.values[:, :k], None), "indices": (order.indices[:, :k].int(), None)}


def layernorm(v: Mapping[str, Any]) -> Expected:
    x, weight, bias = v["x"].double(), v["weight"].double(), v["bias"].double()
    centred = x - x.mean(1, keepdim=True)
    normal = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
    want = normal * weight + bias
    size = (normal.abs() + 1) * weight.abs() + bias.abs()
    # The variance of one element is what rounding leaves of the mean, so eps bounds its root.
    return {"y": (want, 64 * U32 * (x.abs().amax() / 1e-5**0.5 + 1) * size + U16 * want.abs())}


PIPELINES = ("sm_80", "sm_90a", "sm_120a")
PROGRAMS = {
    "splitk": Program(
        "gemm_splitk.py:splitk",
        splitk,
        ("sm_80", "sm_90a"),
        {"inout": ["C"], "deterministic": False},
    ),
    "flash_attention": Program(
        "flash_attention.py:flash_attention",
        flash_attention,
        PIPELINES,
        {"written": {"Output": "once"}},
        {"causal": True},
    ),
    "dequant_gemm": Program(
        "dequant_gemm.py:dequant_gemm",
        dequant_gemm,
        ("sm_80", "sm_120a"),
        {"dims": {"m": [1, 100]}, "values": {"B": [0, 255]}, "written": {"C": "once"}},
    ),
    "persistent": Program(
        "persistent_gemm.py:persistent", gemm_nt, ("sm_80", "sm_90a"), {"written": {"C": "once"}}
    ),
    "softmax": Program(
        "softmax.py:softmax",
        softmax,
        ("sm_80",),
        {"dims": {"m": [2, 40]}, "written": {"y": "once"}},
    ),
    "gather": Program(
        "softmax.py:gather",
        gather,
        ("sm_89",),
        {"values": {"index": [-1, "r-1"]}, "written": {"y": "once"}},
    ),
    "ws_gemm": Program(
        "ws_gemm.py:ws_gemm",
        gemm_nt,
        ("sm_90a", "sm_120a"),
        {"dims": {"m": [1, 130]}, "written": {"C": "once"}},
    ),
    "tma_gemm": Program(
        "tma_gemm.py:tma_gemm",
        gemm_nn,
        PIPELINES,
        {"dims": {"m": [1, 130]}, "written": {"C": "once"}},
        {"stages": 2},
    ),
    "conv": Program(
        "conv.py:conv",
        conv,
        ("sm_80", "sm_90a"),
        {"dims": {"images": [1, 3]}, "written": {"Y": "once"}},
    ),
    "histogram": Program(
        "histogram.py:histogram",
        histogram,
        ("sm_80", "sm_100a"),
        {"dims": {"n": [129, 700]}, "values": {"x": [0, 63]}, "inout": ["counts"]},
    ),
    "topk": Program(
        "histogram.py:topk",
        topk,
        ("sm_89",),
        {"dims": {"rows": [1, 5]}, "written": {"values": "once", "indices": "once"}},
    ),
    "linear_attention": Program(
        "linear_attention.py:linear_attention",
        linear_attention,
        ("sm_80", "sm_90a"),
        {"written": {"Output": "once"}},
    ),
    "fp8_gemm": Program(
        "fp8_gemm.py:fp8_gemm",
        fp8_gemm,
        ("sm_89", "sm_100a"),
        {"dims": {"m": [1, 70]}, "written": {"C": "once"}},
    ),
    "layernorm": Program(
        "layernorm.py:layernorm",
        layernorm,
        ("sm_90a", "sm_120a"),
        {"dims": {"d": [1, 300], "m": [1, 9]}, "written": {"y": "once"}},
    ),
}
RUNS = [(name, arch) for name, program in PROGRAMS.items() for arch in program.archs]


def compare(got: torch.Tensor, want: torch.Tensor, bound: torch.Tensor | None) -> str:
    """Why `got` is not what was expected, "" if it is."""
    if got.shape != want.shape:
        return f"shape {tuple(got.shape)}, expected {tuple(want.shape)}"
    if bound is None:
        same = got.dtype == want.dtype and torch.equal(_bytes(got), _bytes(want))
        return "" if same else "the bits differ"
    error = (got.double() - want.double()).abs()
    wrong = ~(error <= bound)  # a NaN is wrong
    if not wrong.any():
        return ""
    at = tuple(int(i) for i in wrong.nonzero()[0])
    return (
        f"{int(wrong.sum())} of {wrong.numel()} elements are off; {at} is {got[at].item()!r}, "
        f"expected {want[at].item()!r} within {bound[at].item():.2g}"
    )


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)
