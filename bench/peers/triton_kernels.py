"""The programs of ``bench/programs.py`` in Triton, run by its interpreter (NumPy on the CPU)."""

import math
import os

os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is declared

import numpy as np
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


@triton.jit
def _mhc_pre(
    x, fn, scale, base, post, comb, collapsed, M, eps, norm_eps,
    N: tl.constexpr, D: tl.constexpr, ITERS: tl.constexpr,
    TOKENS: tl.constexpr, DEPTH: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    # Columns of the product: N² of comb, N of pre, N of post, the rest empty.
    columns = tl.arange(0, 2 * N * N)
    source = tl.where(columns < N * N, columns + 2 * N, columns - N * N)
    there = columns < N * N + 2 * N
    part = tl.where(columns < N * N, 2, tl.where(columns < N * N + N, 0, 1))
    tokens = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    inside = tokens[:, None] < M
    z = tl.zeros((TOKENS, 2 * N * N), dtype=tl.float32)
    squares = tl.zeros((TOKENS,), dtype=tl.float32)
    for start in range(0, N * D, DEPTH):
        inner = start + tl.arange(0, DEPTH)
        at = tokens[:, None] * (N * D) + inner[None, :]
        left = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        place = source[None, :] * (N * D) + inner[:, None]
        right = tl.load(fn + place, mask=there[None, :], other=0.0)
        z = tl.dot(left, right, z, input_precision="ieee")
        squares += tl.sum(left * left, axis=1)
    factor = 1 / tl.sqrt(squares / (N * D) + norm_eps)
    z = z * factor[:, None] * tl.load(scale + part)[None, :]
    z += tl.load(base + source, mask=there, other=0.0)[None, :]
    halves = tl.permute(tl.reshape(z, (TOKENS, 2, N * N)), (0, 2, 1))
    logits, gates = tl.split(halves)
    # Sinkhorn: rows, then columns.
    mix = tl.reshape(logits, (TOKENS, N, N))
    mix = tl.exp(mix - tl.max(mix, axis=2)[:, :, None])
    mix = mix / tl.sum(mix, axis=2)[:, :, None] + eps
    mix = mix / (tl.sum(mix, axis=1)[:, None, :] + eps)
    for _ in range(ITERS - 1):
        mix = mix / (tl.sum(mix, axis=2)[:, :, None] + eps)
        mix = mix / (tl.sum(mix, axis=1)[:, None, :] + eps)
    stream = tl.arange(0, N)
    square = stream[None, :, None] * N + stream[None, None, :]
    tl.store(comb + tokens[:, None, None] * (N * N) + square, mix, mask=inside[:, :, None])
    sigmoid = tl.reshape(1 / (1 + tl.exp(-gates)), (TOKENS, N, N))
    row = stream[None, :, None]
    gate = tl.sum(tl.where(row == 0, sigmoid, 0.0), axis=1) + eps
    gain = 2 * tl.sum(tl.where(row == 1, sigmoid, 0.0), axis=1)
    tl.store(post + tokens[:, None] * N + stream[None, :], gain, mask=inside)
    for start in range(0, D, WIDTH):
        dims = start + tl.arange(0, WIDTH)
        at = (tokens[:, None, None] * N + stream[None, :, None]) * D + dims[None, None, :]
        streams = tl.load(x + at, mask=inside[:, :, None], other=0.0).to(tl.float32)
        total = tl.sum(gate[:, :, None] * streams, axis=1)
        out = collapsed + tokens[:, None] * D + dims[None, :]
        tl.store(out, total.to(collapsed.dtype.element_ty), mask=inside)


def mhc_pre(
    x: torch.Tensor,
    fn: torch.Tensor,
    scale: torch.Tensor,
    base: torch.Tensor,
    post: torch.Tensor,
    comb: torch.Tensor,
    collapsed: torch.Tensor,
    tokens: int = 16,
    depth: int = 128,
    width: int = 512,
) -> None:
    """The op `mhc/pre`: x [M, N, D], fn [C, N D], scale [3], base [C] with C = N (N + 2);
    writes post [M, N], comb [M, N, N] and collapsed [M, D]."""
    M, N, D = x.shape
    grid = (triton.cdiv(M, tokens),)
    # A gate below -88 makes exp(-gate) infinite and its sigmoid 0, as on a GPU: nothing to warn of.
    with np.errstate(over="ignore"):
        _mhc_pre[grid](
            x, fn, scale, base, post, comb, collapsed, M, 1e-6, 1e-6, N, D, 20, tokens, depth, width
        )
