"""Cases of sm_90 and later: bulk copies and tensor maps, clusters, dependent launches."""

# ruff: noqa: E501 (a statement of a kernel is a line)
from __future__ import annotations

import torch

from ..runtime.virtual.test_tma import FIGURES, tensor_map
from .text import Text

LATER = ("sm_90a", "sm_100a", "sm_120a")
SETUP = (
    "__shared__ __align__(16) uint64_t memory[1]; auto bar = reinterpret_cast<Barrier*>(memory);"
    "if (tid == 0) bar[0].init(1); tl::fence_barrier_init(); __syncthreads();"
)


def _load(words: int, issue: str) -> str:
    """Issues copies of so many words into shared memory, waits for them, writes them to y."""
    return (
        f"{SETUP} if (tid == 0) {{ bar[0].arrive_and_expect_tx({4 * words}); {issue} }}"
        f"bar[0].wait(0); for (int i = tid; i < {words}; i += 32) y[i] = ((int*)shared)[i];"
    )


def _store(fill: str, issue: str) -> str:
    """Fills 1024 words of shared memory, then issues stores of them."""
    return (
        f"for (int i = tid; i < 1024; i += 32) (({fill}*)shared)[i] = ({fill})i;"
        f"tl::fence_proxy_async(); __syncthreads(); if (tid == 0) {{ {issue}"
        "tl::tma_store_arrive(); tl::tma_store_wait<0, false>(); }"
    )


def _swizzle(mode: int) -> Text:
    width = (64, 16, 32, 64)[mode]  # halves of a row

    def want(x):
        lines = x.view(torch.half).view(64, 64)[8:40, :width].reshape(-1, 8, 8)
        figure = FIGURES[mode] if mode else ["01234567"]
        order = [[int(c) for c in figure[i % len(figure)]] for i in range(len(lines))]
        swizzled = [line[chunks] for line, chunks in zip(lines, order, strict=True)]
        return torch.stack(swizzled).flatten().view(torch.int32)

    return Text(
        _load(width * 16, "tl::tma_load(m0, bar[0], shared, 0, 8);"), width * 16, archs=LATER,
        inputs=lambda: torch.arange(2048, dtype=torch.int32), want=want,
        maps=(lambda y, x: tensor_map(x.view(torch.half).view(64, 64), (width, 32), swizzle=mode),),
    )  # fmt: skip


def _images(x: torch.Tensor) -> torch.Tensor:
    return x.view(torch.half).view(2, 6, 5, 32)


def _filter_tap(x):
    """Row 1, column 2 of a padded 3 x 3 filter, rows 2 and 3 of image 1."""
    padded = torch.nn.functional.pad(_images(x), (0, 0, 1, 1, 1, 1))
    return padded[1, 3:5, 2:7].contiguous().flatten().view(torch.int32)


def _stored(x):
    """24 floats at column 2, row -1 of a 4 x 8 output; three times over where one is added twice."""
    y = torch.full((32,), -7, dtype=torch.int32)
    y.view(torch.float32).view(4, 8)[:2, 2:] = 3 * torch.arange(24.0).view(3, 8)[1:, :6]
    return y


def _scattered(x):
    y = torch.full((24,), -7, dtype=torch.int32)
    y.view(6, 4)[[3, 5, 0]] = torch.arange(16, dtype=torch.int32).view(4, 4)[[0, 2, 3]]
    return y


def _gathered(x):
    rows = x.view(8, 32)[[3, 0, 5, 2], 8:24].clone()
    rows[1] = 0  # the row asked for is -1
    return rows.flatten()


def _window(x):
    padded = torch.nn.functional.pad(x.view(16, 64), (4, 4, 4, 4))
    return padded[1:9, 2:10].flatten()


def _five(x):
    padded = torch.nn.functional.pad(x.view(3, 4, 5, 6, 8), (0, 0, 0, 0, 0, 0, 1, 0))
    return padded[1:3, 0:2, 1:4, 3:5, 2:6].flatten()


def _stmatrix(count: int, transposed: bool) -> Text:
    """Thread t of register i: row t / 4, columns 2 (t % 4) and + 1 of matrix i; thread 8 i + r gives
    the address of row r of matrix i."""
    suffix = "_trans" if transposed else ""
    values = ", ".join(f"r[{i}]" for i in range(count))

    def want(x):
        shared = torch.full((32, 8), -7, dtype=torch.int32).view(torch.int16)[:, :8]
        halves = x[: 32 * 4].view(torch.int16).view(32, 4, 2)
        for i in range(count):
            for t in range(32):
                for e in range(2):
                    row, column = t // 4, t % 4 * 2 + e
                    if transposed:
                        row, column = column, row
                    shared[(8 * i + row) * 5 % 32, column] = halves[t, i, e]
        return shared.contiguous().view(torch.int32).flatten()

    return Text(
        "int* s = (int*)shared; for (int i = tid; i < 128; i += 32) s[i] = -7; __syncthreads(); int r[4];"
        "for (int i = 0; i < 4; ++i) r[i] = x[tid * 4 + i];"
        f"tl::ptx_stmatrix_x{count}{suffix}(s + tid % {8 * count} * 5 % 32 * 4, {values}); __syncthreads();"
        "for (int i = tid; i < 128; i += 32) y[i] = s[i];", 128, archs=LATER,
        inputs=lambda: torch.arange(128, dtype=torch.int32) * 0x30007, want=want,
    )  # fmt: skip


RANK = "int rank = tl::block_rank_in_cluster(); int* s = (int*)shared;"


def _ids(x):
    b = torch.arange(8)
    return torch.stack([b % 4, b % 4, b // 4, b * 0 + 2, b * 0 + 4], 1).int().flatten()


# fmt: off
TEXTS = {
    "mbarrier": Text(
        "__shared__ __align__(16) uint64_t memory[1]; auto bar = reinterpret_cast<Barrier*>(memory);"
        "int* s = (int*)shared; if (tid == 0) bar[0].init(32); tl::fence_barrier_init(); __syncthreads();"
        "if (tid < 32) { s[tid] = x[tid] * 3; bar[0].arrive(); } else { bar[0].wait(0); y[tid - 32] = s[63 - tid]; }",
        32, 64, LATER, want=lambda x: 3 * x[:32].flip(0)),
    **{f"tma_swizzle_{bytes_}": _swizzle(mode) for mode, bytes_ in enumerate((0, 32, 64, 128))},
    "tma_outside_is_zero": Text(
        _load(64, "tl::tma_load(m0, bar[0], shared, -2, -3);"), 64, archs=LATER, want=_window,
        maps=(lambda y, x: tensor_map(x.view(16, 64), (8, 8)),)),
    "tma_five_dimensions": Text(
        _load(96, "tl::tma_load(m0, bar[0], shared, 2, 3, 1, -1, 1);"), 96, archs=LATER, want=_five,
        inputs=lambda: torch.arange(2880, dtype=torch.int32),
        maps=(lambda y, x: tensor_map(x.view(3, 4, 5, 6, 8), (4, 2, 3, 2, 2)),)),
    "tma_every_third_row": Text(
        _load(24, "tl::tma_load(m0, bar[0], shared, 0, 2);"), 24, archs=LATER,
        want=lambda x: x.view(-1, 8)[2:9:3].flatten(),
        maps=(lambda y, x: tensor_map(x.view(-1, 8), (8, 7), steps=(1, 3)),)),
    "tma_im2col": Text(
        _load(160, "tl::tma_load_im2col(m0, bar[0], shared, 0, -1, 1, 1, 2, 1);"), 160, archs=LATER,
        inputs=lambda: torch.arange(960, dtype=torch.int32), want=_filter_tap,
        maps=(lambda y, x: tensor_map(_images(x), (), lower=(-1, -1), upper=(-1, -1), pixels=10, channels=32),)),
    "tma_store_and_add": Text(
        _store("float", "tl::tma_store(m0, shared, 2, -1); tl::tma_store_arrive(); tl::tma_store_wait<0, false>();"
               "tl::tma_store_add(m0, shared, 2, -1); tl::tma_store_add(m0, shared, 2, -1);"), 32,
        archs=LATER, want=_stored,
        maps=(lambda y, x: tensor_map(y.view(torch.float32).view(4, 8), (8, 3)),)),
    "bulk_load": Text(
        _load(64, "tl::tma_load(shared, x + 8, bar[0], 256);"), 64, archs=LATER, want=lambda x: x[8:72]),
    "bulk_store": Text(
        _store("int", "tl::tma_store(y + 4, shared, 192);"), 64, archs=LATER,
        want=lambda x: torch.cat([x.new_full((4,), -7), x[:48], x.new_full((12,), -7)])),
    "tma_gather": Text(
        _load(64, "tl::tma_load_gather4(m0, bar[0], shared, 8, 3, -1, 5, 2);"), 64, archs=("sm_100a",),
        want=_gathered, inputs=lambda: torch.arange(256, dtype=torch.int32),
        maps=(lambda y, x: tensor_map(x.view(8, 32), (16, 1)),)),
    "tma_scatter": Text(
        _store("int", "tl::tma_store_scatter4(m0, shared, 0, 3, -1, 5, 0);"), 24, archs=("sm_100a",),
        want=_scattered, maps=(lambda y, x: tensor_map(y.view(6, 4), (4, 1)),)),
    **{f"stmatrix_x{n}{'_trans' * t}": _stmatrix(n, bool(t)) for n in (1, 2, 4) for t in (0, 1)},
    "setmaxnreg": Text(
        "if (tid < 128) tl::warpgroup_reg_dealloc<24>(); else tl::warpgroup_reg_alloc<240>();"
        "y[tid] = x[tid] * 5;", 384, 384, LATER, want=lambda x: 5 * x[:384]),
    "griddepcontrol": Text(
        "cudaGridDependencySynchronize(); int before = y[tid]; cudaTriggerProgrammaticLaunchCompletion();"
        "y[tid] = before * 3 + x[tid];", 32, archs=LATER, times=3, want=lambda x: 13 * x[:32] - 189),
    "cluster_ids": Text(
        "if (tid == 0) { int* at = y + blockIdx.x * 5; at[0] = tl::block_rank_in_cluster();"
        "at[1] = tl::block_id_in_cluster().x; at[2] = tl::cluster_id_in_grid().x; at[3] = tl::cluster_grid_dims().x;"
        "at[4] = tl::cluster_shape().x; }", 40, archs=LATER, grid=8, cluster=4, want=_ids),
    "cluster_shared_memory": Text(
        f"{RANK} s[tid] = x[blockIdx.x * 32 + tid]; tl::cluster_sync();"
        "int* theirs = cooperative_groups::this_cluster().map_shared_rank(s, rank ^ 1);"
        "y[blockIdx.x * 32 + tid] = theirs[31 - tid]; tl::cluster_sync();", 256, archs=LATER, grid=8, cluster=2,
        want=lambda x: x[:256].view(4, 2, 32).flip(1, 2).flatten()),
    "cluster_barrier_in_two_steps": Text(
        f"{RANK} s[tid] = x[blockIdx.x * 32 + tid]; __threadfence(); tl::cluster_arrive_relaxed(); tl::cluster_wait();"
        "int sum = 0; for (int i = 0; i < 4; ++i) sum += cooperative_groups::this_cluster().map_shared_rank(s, i)[tid];"
        "y[blockIdx.x * 32 + tid] = sum; tl::cluster_arrive(); tl::cluster_wait();", 128, archs=LATER, grid=4,
        cluster=4, want=lambda x: x[:128].view(4, 32).sum(0).int().repeat(4)),
    "cluster_send": Text(
        f"{SETUP} {RANK} tl::cluster_sync(); s[tid] = x[blockIdx.x * 32 + tid]; __syncthreads();"
        "if (tid == 0) tl::tma_store_cluster(s + 32, s, rank ^ 1, 128, bar[0]); bar[0].wait(0);"
        "y[blockIdx.x * 32 + tid] = s[32 + tid]; tl::cluster_sync();", 128, archs=LATER, grid=4, cluster=2,
        want=lambda x: x[:128].view(2, 2, 32).flip(1).flatten()),
    "cluster_remote_arrival": Text(
        f"{SETUP} {RANK} tl::cluster_sync(); if (tid == 0) bar[0].arrive((rank + 1) % 4, 1); bar[0].wait(0);"
        "y[blockIdx.x * 32 + tid] = x[tid] + rank; tl::cluster_sync();", 128, archs=LATER, grid=4, cluster=4,
        want=lambda x: (x[:32] + torch.arange(4, dtype=torch.int32)[:, None]).flatten()),
    "cluster_multicast": Text(
        f"{SETUP} {RANK} tl::cluster_sync(); if (tid == 0) {{ bar[0].arrive_and_expect_tx(512);"
        "tl::tma_load_multicast(m0, bar[0], s + rank * 64, 3, 0, rank * 8); } bar[0].wait(0);"
        "for (int i = tid; i < 128; i += 32) y[blockIdx.x * 128 + i] = s[i]; tl::cluster_sync();", 512,
        archs=LATER, grid=4, cluster=2, want=lambda x: x[:128].repeat(4),
        maps=(lambda y, x: tensor_map(x.view(-1, 8), (8, 8)),)),
    "cooperative_grid": Text(
        "y[blockIdx.x * 32 + tid] = x[blockIdx.x * 32 + tid] + 1; cooperative_groups::this_grid().sync();"
        "int other = ((volatile int*)y)[gridDim.x * 32 - 1 - blockIdx.x * 32 - tid];"
        "cooperative_groups::this_grid().sync(); y[blockIdx.x * 32 + tid] = other;", 256, grid=8, cooperative=True,
        want=lambda x: (x[:256] + 1).flip(0)),
}
# fmt: on
