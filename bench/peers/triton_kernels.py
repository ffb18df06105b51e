"""The programs of ``bench/programs.py`` in Triton, run by its interpreter (NumPy on the CPU)."""

import math
import os

os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is declared

import torch
import triton
import triton.language as tl


@triton.jit
def _gemm(a, b, c, n: tl.constexpr, TILE: tl.constexpr, STEP: tl.constexpr):
    rows = tl.program_id(1) * TILE + tl.arange(0, TILE)
    columns = tl.program_id(0) * TILE + tl.arange(0, TILE)
    inner = tl.arange(0, STEP)
    acc = tl.zeros((TILE, TILE), dtype=tl.float32)
    for k in range(0, n, STEP):
        left = tl.load(a + rows[:, None] * n + (k + inner)[None, :])
        right = tl.load(b + (k + inner)[:, None] * n + columns[None, :])
        acc = tl.dot(left, right, acc)
    tl.store(c + rows[:, None] * n + columns[None, :], acc.to(tl.float16))


def gemm(
    a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, tile: int = 128, step: int = 32
) -> None:
    """C = A B, all n × n in fp16."""
    n = a.shape[0]
    _gemm[(n // tile, n // tile)](a, b, c, n, tile, step)


@triton.jit
def _attention(
    q, k, v, o, scale, S: tl.constexpr, H: tl.constexpr, D: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    dims = tl.arange(0, D)
    head = tl.program_id(1) * D
    place = head + rows[:, None] * (H * D) + dims[None, :]
    query = tl.load(q + place)
    most = tl.full((ROWS,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((ROWS,), dtype=tl.float32)
    acc = tl.zeros((ROWS, D), dtype=tl.float32)
    for start in range(0, S, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        there = head + columns[:, None] * (H * D) + dims[None, :]
        scores = tl.dot(query, tl.trans(tl.load(k + there)))
        now = tl.maximum(most, tl.max(scores, axis=1))
        factor = tl.exp2((most - now) * scale)
        weights = tl.exp2((scores - now[:, None]) * scale)
        total = total * factor + tl.sum(weights, axis=1)
        acc = tl.dot(weights.to(tl.float16), tl.load(v + there), acc * factor[:, None])
        most = now
    tl.store(o + place, (acc / total[:, None]).to(tl.float16))


def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, o: torch.Tensor, tile: int = 64
) -> None:
    """O = softmax(Q K^T / sqrt(D)) V per head, fp16 [S, H, D]."""
    S, H, D = q.shape
    scale = math.log2(math.e) / math.sqrt(D)
    _attention[(S // tile, H)](q, k, v, o, scale, S, H, D, tile, tile)


@triton.jit
def _softmax(x, y, N: tl.constexpr):
    place = tl.program_id(0) * N + tl.arange(0, N)
    row = tl.load(x + place)
    row = tl.exp(row - tl.max(row, axis=0))
    tl.store(y + place, row / tl.sum(row, axis=0))


def softmax(x: torch.Tensor, y: torch.Tensor) -> None:
    """y = softmax of each row, fp32."""
    _softmax[(x.shape[0],)](x, y, x.shape[1])
