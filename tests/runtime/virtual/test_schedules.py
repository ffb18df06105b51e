"""Every schedule is what its name says: threads take tickets, and the tickets tell the order."""

import functools

import pytest
import torch

from tileproof.runtime import virtual

from .support import kernel

BLOCKS, WARPS, STEPS = 4, 4, 8
SOURCE = "#include <tl_templates/cuda/cluster.h>\n" + kernel(
    "int* ticket, int* next, float* seen, const float* x",
    """
    extern __shared__ __align__(128) float s[];
    __shared__ uint64_t m[1];
    int at = (int)(blockIdx.x * blockDim.x) + tid;
    for (int step = 0; step < 8; ++step) {
      ticket[step * gridDim.x * blockDim.x + at] = atomicAdd(next, 1);
      __syncwarp();
    }
    if (tid == 0) tl::mbarrier_init(m[0], 1);
    __syncthreads();
    if (tid == 0) {
      s[0] = s[32] = 5;
      tl::cp_async_gs<4>(s, x);
      tl::mbarrier_arrive_expect_tx(m[0], 128);
      tl::tma_load(s + 32, x, m[0], 128);
      seen[0] = s[0], seen[1] = s[32];
      tl::cp_async_wait<0>();
      tl::mbarrier_wait(m[0], 0);
      seen[2] = s[0], seen[3] = s[32];
    }""",
)


@functools.cache
def module() -> virtual.VirtualModule:
    return virtual.VirtualModule(SOURCE)


@functools.cache
def run(schedule: str, seed: int = 0, late: bool = True, cluster: int = 1):
    """Tickets by step, block, warp and lane; what a copy had brought before and after its wait."""
    ticket = torch.zeros(STEPS, BLOCKS, WARPS, 32, dtype=torch.int32)
    seen = torch.zeros(4)
    options = virtual.VirtualOptions(late, seed, threads=1, schedule=schedule)
    args = [ticket, torch.zeros(1, dtype=torch.int32), seen, torch.full((32,), 7.0)]
    module().launch("k", (BLOCKS,), (32 * WARPS,), 512, args, cluster=(cluster,), options=options)
    assert ticket.flatten().sort().values.equal(torch.arange(ticket.numel(), dtype=torch.int32))
    return ticket, seen.tolist()


def order(first: torch.Tensor) -> list[int]:
    return first.argsort().tolist()


def test_ring_and_reverse_are_each_other_backwards():
    n = BLOCKS * WARPS * 32 * STEPS
    want = torch.arange(n, dtype=torch.int32).view(BLOCKS, WARPS, STEPS, 32).permute(2, 0, 1, 3)
    for cluster in (1, 2, 4):
        ring, _ = run("ring", cluster=cluster)
        # A warp meets after each step, and the lane that came last goes on first.
        assert torch.equal(ring // 32, want // 32)
        assert (ring.diff(dim=3) % 32 == 1).all()
        reverse, _ = run("reverse", cluster=cluster)
        # Steps go forward in both; blocks, warps and lanes go backwards.
        assert torch.equal(reverse, ring.flip(1, 2, 3))


@pytest.mark.parametrize("cluster", [1, 2, 4])
def test_ahead_runs_a_warp_until_it_blocks_in_an_order_of_the_seed(cluster):
    orders, blocks = set(), set()
    for seed in range(8):
        ticket, _ = run("ahead", seed, cluster=cluster)
        by_warp = ticket.permute(1, 2, 0, 3).reshape(BLOCKS * WARPS, -1)
        assert (by_warp.amax(1) - by_warp.amin(1) == STEPS * 32 - 1).all()
        orders.add(tuple(order(by_warp.amin(1))))
        blocks.add(tuple(order(ticket.amin((0, 2, 3)))))
    assert len(orders) == 8 and len(blocks) > 2


def test_interleave_leaves_warps_in_between():
    ticket, _ = run("interleave", 0)
    by_warp = ticket.permute(1, 2, 0, 3).reshape(BLOCKS * WARPS, -1)
    assert (by_warp.amax(1) - by_warp.amin(1) >= STEPS * 32).sum() > BLOCKS * WARPS // 2


@pytest.mark.parametrize("schedule", virtual.SCHEDULES)
def test_copies_are_late_or_eager(schedule):
    assert run(schedule, late=True)[1] == [5, 5, 7, 7]
    assert run(schedule, late=False)[1] == [7, 7, 7, 7]


@pytest.mark.parametrize("schedule", ["ahead", "interleave"])
def test_a_seed_repeats_everything_and_another_does_not(schedule):
    for cluster in (1, 2):
        again = run.__wrapped__(schedule, 3, cluster=cluster)[0]
        assert torch.equal(run(schedule, 3, cluster=cluster)[0], again)
        assert not torch.equal(again, run(schedule, 4, cluster=cluster)[0])


def test_seeds_without_a_name_and_names_that_do_not_exist():
    orders = [virtual.VirtualOptions(seed=seed).order for seed in (0, 1, 2)]
    assert orders == ["ring", "ahead", "interleave"]
    with pytest.raises(ValueError, match="schedule: got 'up', expected one of"):
        run("up")
