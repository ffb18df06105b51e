"""Planted bugs between blocks that run at once, in the manner of test_planted.py."""

# ruff: noqa: E501 (a kernel is a line of the table)
from __future__ import annotations

import functools

import pytest
import torch

from tileproof import sanitizer
from tileproof.dsl import Facts

HEADERS = "atomic barrier cluster copy copy_sm90 debug intrin"
INCLUDES = "".join(f"#include <tl_templates/cuda/{name}.h>\n" for name in HEADERS.split())
HEAD = """
  extern __shared__ __align__(1024) float s[];
  __shared__ uint64_t m[2];
  int tid = (int)threadIdx.x, rank = tl::block_rank_in_cluster();
  float* mine = y + blockIdx.x * 64;
  float* peer = (float*)vgpu_map_rank(s, (rank ^ 1) % tl::cluster_shape().x);
"""
INIT = "if (tid == 0) { tl::mbarrier_init(m[0], 1); tl::mbarrier_init(m[1], 1); tl::fence_barrier_init(); }"
SYNC = "tl::cluster_sync();"
START = INIT + SYNC
GRID_SYNC = "cooperative_groups::this_grid().sync();"
LOCAL_SYNC = "__syncthreads();"

CLUSTERS = {"grid": (4,), "cluster": (2,)}
GRID = {"grid": (4,), "cooperative": True}
# All at once, in clusters; `rank ^ 1` is a block of the same cluster.
BOTH = {**CLUSTERS, **GRID}

# name → (kind, launch, body with the bug, what replaces {bug} in the clean twin, what it is with
# the bug). Blocks of 64 threads; y and x have 256 elements, flag is zeroed and inout.
# fmt: off
CASES = {
    # --- shared memory of a peer
    "no_cluster_barrier_before_reading_a_peer": (
        "race", CLUSTERS, SYNC + "s[tid] = x[tid]; {bug} mine[tid] = peer[63 - tid];" + SYNC, SYNC, LOCAL_SYNC),
    "reading_a_peer_between_arrive_and_wait": (
        "race", CLUSTERS,
        SYNC + "s[tid] = x[tid]; tl::cluster_arrive(); {bug}" + SYNC,
        "tl::cluster_wait(); mine[tid] = peer[63 - tid];", "mine[tid] = peer[63 - tid]; tl::cluster_wait();"),
    "a_relaxed_arrival_hands_nothing_over": (
        "race", CLUSTERS, SYNC + "s[tid] = x[tid]; {bug} tl::cluster_wait(); mine[tid] = peer[63 - tid];" + SYNC,
        "tl::cluster_arrive();", "tl::cluster_arrive_relaxed();"),
    "writing_to_a_peer_that_still_reads": (
        "race", CLUSTERS, "s[tid] = x[tid];" + SYNC + "float v = s[63 - tid]; {bug} peer[tid] = v + 1;" + SYNC
        + "mine[tid] = s[tid];", SYNC, LOCAL_SYNC),
    "sum_in_a_peer_without_atomics": (
        "race", CLUSTERS, "if (tid == 0) s[0] = 0;" + SYNC + "{bug}" + SYNC + "mine[tid] = s[0];",
        "atomicAdd(peer, 1.f);", "peer[0] += tid;"),
    "slot_freed_before_all_have_read_it": (
        "race", CLUSTERS,
        START + "if (rank == 0) { peer[tid] = x[tid];" + LOCAL_SYNC + "if (tid == 0) tl::mbarrier_arrive(m[0], 1, 1);"
        "tl::mbarrier_wait(m[1], 0); peer[tid] = 2 * x[tid]; } else { tl::mbarrier_wait(m[0], 0); mine[tid] = s[63 - tid];"
        "{bug} if (tid == 0) ((Barrier*)m)[1].arrive(0); }" + SYNC, LOCAL_SYNC, ""),
    "second_copy_not_waited_for": (
        "race", CLUSTERS,
        START + "s[tid] = x[tid]; tl::fence_proxy_async();" + LOCAL_SYNC + "if (tid == 0) tl::tma_store_cluster(s + 64, s, rank ^ 1, 256, m[0]);"
        "{bug} mine[tid] = s[64 + tid];" + SYNC, "tl::mbarrier_wait(m[0], 0);", LOCAL_SYNC),
    # --- mbarriers of a peer
    "arrival_at_the_wrong_rank": (
        "deadlock", CLUSTERS,
        START + "if (rank == 0) { peer[tid] = x[tid];" + LOCAL_SYNC + "if (tid == 0) ((Barrier*)m)[0].arrive({bug}); }"
        "else { tl::mbarrier_wait(m[0], 0); mine[tid] = s[63 - tid]; }" + SYNC, "1", "0"),
    "multicast_mask_without_a_peer": (
        "deadlock", CLUSTERS,
        START + "if (tid == 0) { tl::mbarrier_arrive_expect_tx(m[0], 256);"
        "if (rank == 0) tl::tma_load_multicast(s, x, m[0], 256, {bug}); } tl::mbarrier_wait(m[0], 0); mine[tid] = s[tid];" + SYNC,
        "3", "1"),
    "multicast_to_a_peer_that_expects_nothing": (
        "race", CLUSTERS,
        START + "if (tid == 0) { if ({bug}) tl::mbarrier_arrive_expect_tx(m[0], 256); else tl::mbarrier_arrive(m[0]);"
        "if (rank == 0) tl::tma_load_multicast(s, x, m[0], 256, 3); } tl::mbarrier_wait(m[0], 0); mine[tid] = s[tid];" + SYNC,
        "true", "rank == 0"),
    "multicast_over_a_tile_a_peer_still_reads": (
        "race", CLUSTERS,
        "s[tid] = x[tid];" + START + "float v = s[63 - tid]; {bug} if (tid == 0) { tl::mbarrier_arrive_expect_tx(m[0], 256);"
        "if (rank == 0) tl::tma_load_multicast(s, x, m[0], 256, 3); } tl::mbarrier_wait(m[0], 0); mine[tid] = s[tid] + v;" + SYNC,
        SYNC, LOCAL_SYNC),
    "mbarrier_init_without_its_fence": (
        "race", CLUSTERS,
        "if (tid == 0) { tl::mbarrier_init(m[0], 1); {bug} } tl::cluster_arrive_relaxed(); tl::cluster_wait();"
        "if (tid == 0) tl::mbarrier_arrive(m[0], rank ^ 1, 1); tl::mbarrier_wait(m[0], 0);" + SYNC,
        "tl::fence_barrier_init();", ""),
    # --- blocks that are not there yet, or no more
    "exit_while_a_peer_reads": (
        "cluster-lifetime", CLUSTERS, "s[tid] = x[tid];" + SYNC + "mine[tid] = peer[63 - tid]; {bug}", SYNC, ""),
    "exit_before_the_last_arrival_of_a_peer": (
        "cluster-lifetime", CLUSTERS, START + "if (tid == 0) tl::mbarrier_arrive(m[0], rank ^ 1, 1); {bug}",
        "tl::mbarrier_wait(m[0], 0);", ""),
    "exit_while_a_multicast_is_on_its_way": (
        "cluster-lifetime", CLUSTERS,
        START + "if (tid == 0) tl::mbarrier_arrive_expect_tx(m[0], 256);" + SYNC + "if (rank == 0 && tid == 0)"
        "tl::tma_load_multicast(s, x, m[0], 256, 3); {bug}", "tl::mbarrier_wait(m[0], 0);" + SYNC,
        "if (rank == 0) tl::mbarrier_wait(m[0], 0);"),
    "writing_to_a_peer_before_it_runs": (
        "cluster-lifetime", CLUSTERS, "{bug} peer[tid] = x[tid];" + SYNC + "mine[tid] = s[tid];", SYNC, LOCAL_SYNC),
    # --- proxies across blocks
    "peer_wrote_what_tma_stores": (
        "proxy-fence", CLUSTERS,
        SYNC + "peer[tid] = x[tid]; {bug}" + SYNC + "if (tid == 0) { tl::tma_store(mine, s, 256); tl::tma_store_arrive(); tl::tma_store_wait<0>(); }",
        "tl::fence_proxy_async();", ""),
    "sent_without_proxy_fence": (
        "proxy-fence", CLUSTERS,
        START + "s[tid] = x[tid]; {bug}" + LOCAL_SYNC + "if (tid == 0) { auto theirs = (uint64_t*)vgpu_map_rank(m, rank ^ 1);"
        "vgpu_mbarrier_arrive(theirs, 256); vgpu_bulk_send(peer + 64, s, 256, theirs); } tl::mbarrier_wait(m[0], 0); mine[tid] = s[64 + tid];" + SYNC,
        "tl::fence_proxy_async();", ""),
    # --- global memory between the blocks of a gang
    "cluster_passes_global_data_without_barrier": (
        "race", CLUSTERS, "mine[tid] = x[tid]; {bug} if (y[(blockIdx.x ^ 1) * 64 + tid] > 8) flag[2] = 1;", SYNC, LOCAL_SYNC),
    "grid_passes_data_without_sync": (
        "race", GRID, "mine[tid] = x[tid]; {bug} if (y[(blockIdx.x + 1) % 4 * 64 + tid] > 8) flag[2] = 1;", GRID_SYNC, LOCAL_SYNC),
    "grid_overwrites_what_others_read": (
        "race", GRID, "mine[tid] = x[tid];" + GRID_SYNC + "float v = y[255 - blockIdx.x * 64 - tid]; {bug} mine[tid] = v;",
        GRID_SYNC, LOCAL_SYNC),
    "one_thread_waits_for_the_grid_and_tells_nobody": (
        "race", GRID, "mine[tid] = x[tid];" + LOCAL_SYNC + "__threadfence(); if (tid == 0) { atomicAdd(flag, 1);"
        "while (AtomicLoad(flag, 2) < 4) {} } {bug} if (y[255 - blockIdx.x * 64 - tid] > 8) flag[2] = 1;",
        LOCAL_SYNC, ""),
    "one_of_several_readers_is_not_waited_for": (
        "race", GRID, "mine[tid] = 1;" + GRID_SYNC + "if (blockIdx.x) { if (y[tid] > 8) flag[2] = 1;" + LOCAL_SYNC +
        "__threadfence(); if (tid == 0 && blockIdx.x != {bug}) atomicAdd(flag, 1); } else { if (tid == 0)"
        "while (AtomicLoad(flag, 2) < 3 - ({bug} == 1)) {}" + LOCAL_SYNC + "y[tid] = 2; }", "9", "1"),
    "cluster_barrier_where_the_grid_must_meet": (
        "race", BOTH, "mine[tid] = x[tid]; {bug} if (y[(blockIdx.x + 2) % 4 * 64 + tid] > 8) flag[2] = 1;", GRID_SYNC, SYNC),
}
# fmt: on


@functools.cache
def text() -> str:
    kernels = []
    for name, (_, _, body, clean, bug) in CASES.items():
        for suffix, words in (("bug", bug), ("clean", clean)):
            kernels.append(
                f'extern "C" __global__ void __launch_bounds__(64, 1) {name}_{suffix}'
                f"(float* y, const float* x, int* flag) {{{HEAD}{body.replace('{bug}', words)}\n}}\n"
            )
    return INCLUDES + "\n".join(kernels)


def run(kernel: str, launch: dict, seed: int = 0) -> sanitizer.KernelReport:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, generator=generator)
    arguments = [torch.zeros(256), x, torch.zeros(4, dtype=torch.int32)]
    facts = Facts(inout=("flag",))
    report = sanitizer.sanitize_text(
        text(), kernel, arguments, **launch, block=(64,), smem=512, facts=facts, seed=seed
    )
    return report.kernels[0]


@pytest.mark.parametrize("name", CASES)
def test_the_bug_is_found_and_the_clean_twin_is_not_flagged(name):
    kind, launch, *_ = CASES[name]
    report = run(f"{name}_bug", launch)
    assert not report.reason
    assert kind in {f.kind for f in report.findings}, report.findings
    clean = run(f"{name}_clean", launch)
    assert not clean.findings and not clean.reason


def test_an_exit_too_early_is_found_whether_or_not_it_comes_first():
    for name, words in (
        ("exit_while_a_multicast_is_on_its_way", "that does not wait for it before it exits"),
        ("exit_while_a_peer_reads", "in the cluster, which has exited"),
    ):
        findings = run(f"{name}_bug", CLUSTERS).findings
        assert any(words in finding.message for finding in findings)


def test_readers_of_all_blocks_are_remembered_on_every_schedule():
    (finding,) = run("one_of_several_readers_is_not_waited_for_bug", GRID).findings
    assert finding.run == "ring, late" and finding.other.block == (1, 0, 0)
