"""Clusters and cooperative grids: blocks that run at once and reach into each other."""

import functools

import pytest
import torch

import tileproof
from tileproof.runtime import virtual

from .support import kernel
from .test_tma import tensor_map

SCHEDULES = [{"seed": s, "late": late} for s in (0, 1, 2) for late in (False, True)]
SHARED = """extern __shared__ __align__(1024) float s[];
    __shared__ __align__(16) uint64_t memory[1];
    auto bar = reinterpret_cast<Barrier*>(memory);
    int rank = tl::block_rank_in_cluster();
"""
SETUP = """
    if (tid == 0) bar[0].init(1);
    tl::fence_barrier_init();
    tl::cluster_sync();
"""
MAP = "__grid_constant__ const CUtensorMap x"


def source(name: str, parameters: str, body: str) -> str:
    return "#include <tl_templates/cuda/cluster.h>\n" + kernel(parameters, SHARED + body, name)


SOURCES = [
    source("ids", "int* y", """
        dim3 at = tl::block_id_in_cluster(), id = tl::cluster_id_in_grid();
        dim3 of = tl::cluster_grid_dims(), shape = tl::cluster_shape();
        int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
        int values[] = {rank, (int)at.x, (int)at.y, (int)at.z, (int)id.x, (int)id.y, (int)id.z,
                        (int)of.x, (int)of.y, (int)of.z, (int)shape.x, (int)shape.y};
        if (tid == 0) for (int i = 0; i < 12; ++i) y[block * 12 + i] = values[i];"""),
    # Each block reads its neighbour's shared memory.
    source("swap", "float* y", """
        namespace cg = cooperative_groups;
        s[tid] = (float)(blockIdx.x * 32 + tid);
        ARRIVED
        float* theirs = cg::this_cluster().map_shared_rank(s, rank ^ 1);
        y[blockIdx.x * 32 + tid] = theirs[31 - tid];
        LEAVE""".replace("ARRIVED", "tl::cluster_sync();").replace("LEAVE", "tl::cluster_sync();")),
    source("hasty", "float* y", """
        s[tid] = (float)(blockIdx.x * 32 + tid);
        tl::cluster_arrive();
        y[blockIdx.x * 32 + tid] = cooperative_groups::this_cluster().map_shared_rank(s, 1)[tid];
        tl::cluster_wait();"""),
    source("gone", "float* y", """
        if (rank == 1) return;
        tl::cluster_sync();
        y[tid] = cooperative_groups::this_cluster().map_shared_rank(s, 1)[tid];"""),
    # Rank 0 loads for all: half of the blocks' rows each, multicast.
    source("multicast", f"float* y, {MAP}", SETUP + """
        if (tid == 0) {
          bar[0].arrive_and_expect_tx(512);
          tl::tma_load_multicast(x, bar[0], s + rank * 64, 3, 0, rank * 8);
        }
        bar[0].wait(0);
        for (int i = tid; i < 128; i += 32) y[blockIdx.x * 128 + i] = s[i];
        tl::cluster_sync();"""),
    # A token goes round: each block waits for its left neighbour and signals its right one.
    source("ring", "float* y", SETUP + """
        int size = tl::cluster_shape().x;
        if (rank) bar[0].wait(0);
        if (tid == 0) {
          y[blockIdx.x] = rank ? y[blockIdx.x - 1] + 1 : 100;
          bar[0].arrive((rank + 1) % size, RANK_SIGNALS);
        }
        __syncthreads();
        tl::cluster_sync();""".replace("RANK_SIGNALS", "1")),
    source("stuck", "float* y", SETUP + "if (rank == 1) bar[0].wait(0); tl::cluster_sync();"),
    source("send", "float* y", SETUP + """
        s[tid] = (float)(blockIdx.x * 32 + tid);
        __syncthreads();
        if (tid == 0) tl::tma_store_cluster(s + 32, s, rank ^ 1, 128, bar[0]);
        bar[0].wait(0);
        y[blockIdx.x * 32 + tid] = s[32 + tid];
        tl::cluster_sync();"""),
    source("twice", "float* y", "tl::cluster_arrive(); tl::cluster_arrive();"),
    source("unarrived", "float* y", "tl::cluster_wait();"),
    source("far", "float* y", "y[0] = *(float*)vgpu_map_rank(s, 5);"),
    source("remote_wait", "float* y", SETUP + """
        tl::mbarrier_wait(*(uint64_t*)vgpu_map_rank(memory, rank ^ 1), 0);"""),
    source("pair", f"float* y, {MAP}", SETUP + """
        if (rank == 0 && tid == 0) bar[0].expect_transaction(512);
        tl::cluster_sync();
        if (tid == 0) tl::tma_load_2sm(x, bar[0], s, 0, rank * 8);
        if (rank == 0) { if (tid == 0) bar[0].arrive(); bar[0].wait(0); }
        tl::cluster_sync();
        for (int i = tid; i < 64; i += 32) y[blockIdx.x * 64 + i] = s[i];"""),
    source("grid", "float* x", """
        x[blockIdx.x * 32 + tid] += 1;
        cooperative_groups::this_grid().sync();
        float other = x[gridDim.x * 32 - 1 - blockIdx.x * 32 - tid];
        cooperative_groups::this_grid().sync();
        x[blockIdx.x * 32 + tid] = other;"""),
]  # fmt: skip


@functools.cache
def module() -> virtual.VirtualModule:
    return virtual.VirtualModule("".join(SOURCES), checked=True)


def launch(name: str, grid: tuple, args: list, cluster: tuple = (2,), **how) -> None:
    cooperative = how.pop("cooperative", False)
    options = virtual.VirtualOptions(**how)
    module().launch(
        name, grid, (32,), 1024, args, cluster=cluster, cooperative=cooperative, options=options
    )


def failure(name: str, grid: tuple, args: list, **how) -> str:
    with pytest.raises(virtual.VirtualError) as caught:
        launch(name, grid, args, **how)
    return str(caught.value)


def test_ranks_and_ids():
    y = torch.zeros(3, 4, 8, 12, dtype=torch.int32)
    launch("ids", (8, 4, 3), [y], cluster=(4, 2, 1), seed=1)
    z, yy, x = torch.meshgrid(torch.arange(3), torch.arange(4), torch.arange(8), indexing="ij")
    o = torch.ones_like(x)
    want = [x % 4 + yy % 2 * 4, x % 4, yy % 2, o * 0, x // 4, yy // 2, z, 2 * o, 2 * o, 3 * o,
            4 * o, 2 * o]  # fmt: skip
    assert torch.equal(y, torch.stack(want, -1).int())


@pytest.mark.parametrize("options", SCHEDULES)
def test_blocks_of_a_cluster_share_what_they_should(options):
    for threads in (1, 2):
        y = torch.full((8, 32), -1.0)
        launch("swap", (8,), [y], **options, threads=threads)
        both = torch.arange(256.0).view(4, 2, 32)
        assert torch.equal(y, both.flip(1, 2).reshape(8, 32))
    y = torch.full((8, 32), -1.0)
    launch("send", (8,), [y], **options)
    assert torch.equal(y, both.flip(1).reshape(8, 32))
    x = torch.randn(16, 8)
    y = torch.zeros(4, 128)
    launch("multicast", (4,), [y, tensor_map(x, (8, 8))], **options)
    assert torch.equal(y, x.flatten().expand(4, 128))
    y = torch.zeros(4, 64)
    launch("pair", (4,), [y, tensor_map(x, (8, 8))], **options)
    assert torch.equal(y, x.view(1, 2, 64).expand(2, 2, 64).reshape(4, 64))
    y = torch.zeros(8)
    launch("ring", (8,), [y], cluster=(4,), **options)
    assert y.tolist() == [100, 101, 102, 103] * 2


def test_reading_before_the_other_block_wrote_shows():
    wrong = 0
    for options in SCHEDULES:
        y = torch.zeros(2, 32)
        launch("hasty", (2,), [y], **options)
        wrong += not torch.equal(y, torch.arange(32.0, 64.0).expand(2, 32))
    assert wrong


def test_mistakes_between_blocks_are_named():
    y = torch.zeros(64)
    words = failure("gone", (2,), [y])
    assert "shared memory of block rank 1 in the cluster, which has exited" in words
    words = failure("stuck", (2,), [y])
    assert "block (1, 0, 0): deadlock: threads 0-31 wait on mbarrier at static shared" in words
    assert "block (0, 0, 0): deadlock: threads 0-31 wait on barrier.cluster" in words
    assert "arrives again without waiting in between" in failure("twice", (2,), [y])
    assert "waits without having arrived" in failure("unarrived", (1,), [y], cluster=())
    assert "block rank 5 in a cluster of 2" in failure("far", (2,), [y])
    assert "waits for an mbarrier of another block" in failure("remote_wait", (2,), [y])
    assert "the grid is not made of whole clusters" in failure("swap", (3,), [y])
    words = failure("swap", (16,), [y], cluster=(16,))
    assert "a cluster has 1 to 8 blocks (more is not portable), got 16" in words
    # The next launch is none the worse for it.
    launch("ring", (2,), [y])
    assert y[:2].tolist() == [100, 101]


@pytest.mark.parametrize("options", SCHEDULES)
def test_a_cooperative_grid_meets(options):
    for cluster in ((), (2,)):
        x = torch.arange(256.0)
        launch("grid", (8,), [x], cluster=cluster, cooperative=True, **options)
        assert torch.equal(x, torch.arange(1.0, 257.0).flip(0))
    words = failure("grid", (8,), [x], cluster=())
    assert "this_grid().sync() in a launch that is not cooperative" in words
    words = failure("grid", (2000,), [x], cluster=(), cooperative=True)
    assert "at most 1024 blocks run at once in a cooperative grid, got 2000" in words


# --- what TileLang generates ---------------------------------------------------------------------

tilelang = pytest.importorskip("tilelang")
import tilelang.language as T  # noqa: E402


def test_generated_clusters_and_cooperative_grids():
    @T.prim_func
    def pairs(a: T.Tensor((256, 256), "float16"), c: T.Tensor((256, 256), "float16")):
        with T.Kernel(4, 2, threads=128, cluster_dims=(2, 1, 1)) as (bx, by):
            s = T.alloc_shared((64, 128), "float16")
            T.copy(a[bx * 64, by * 128], s)
            T.cluster_sync()
            T.copy(s, c[bx * 64, by * 128])

    a = torch.randn(256, 256).half()
    c = torch.zeros_like(a)
    tileproof.virtual.compile(pairs, "sm_90a", checked=True)(a, c)
    assert torch.equal(a, c)

    @T.prim_func
    def whole(a: T.Tensor((256,), "float32"), c: T.Tensor((256,), "float32")):
        with T.Kernel(8, threads=32) as bx:
            t = T.get_thread_binding()
            a[bx * 32 + t] = a[bx * 32 + t] * 2
            T.sync_grid()
            c[bx * 32 + t] = a[255 - bx * 32 - t]

    a, c = torch.arange(256.0), torch.zeros(256)
    tileproof.virtual.compile(whole, "sm_90a", checked=True)(a, c)
    assert torch.equal(c, 2 * torch.arange(256.0).flip(0))

    @T.prim_func
    def exchange(a: T.Tensor((256, 128), "float32"), c: T.Tensor((256, 128), "float32")):
        with T.Kernel(4, threads=128, cluster_dims=(2, 1, 1)) as bx:
            mine = T.alloc_shared((64, 128), "float32")
            theirs = T.alloc_shared((64, 128), "float32")
            T.copy(a[bx * 64, 0], mine)
            T.cluster_sync()
            T.copy_cluster(mine, theirs, dst_block=T.block_rank_in_cluster() ^ 1)
            T.cluster_sync()
            T.copy(theirs, c[bx * 64, 0])

    a, c = torch.randn(256, 128), torch.zeros(256, 128)
    tileproof.virtual.compile(exchange, "sm_90a", checked=True)(a, c)
    assert torch.equal(c.view(2, 2, 64, 128), a.view(2, 2, 64, 128).flip(1))
