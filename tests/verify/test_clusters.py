"""Blocks of a cluster that write to each other's shared memory and wait for each other."""

import functools

import pytest
import tilelang.cuda.language as T

from tileproof.codegen.lower import lower
from tileproof.verify import Verdict, prove_lowered

from .test_tma import argument, changed, constant, shifted_pointer

FACTS = {"dims": {"m": [1, 1 << 16]}, "written": {"y": "once"}}
PROVED = ("overflow", "limits", "bounds", "alignment", "blocks", "coverage")


def exchange(remote):
    """The two blocks of a cluster swap their rows: element by element, or in one bulk copy."""
    m = T.dynamic("m")

    @T.prim_func
    def kernel(x: T.Tensor((m * 128, 128), "float32"), y: T.Tensor((m * 128, 128), "float32")):
        with T.Kernel(m * 2, threads=128, cluster_dims=(2, 1, 1)) as b:
            mine = T.alloc_shared((64, 128), "float32")
            theirs = T.alloc_shared((64, 128), "float32")
            done = T.alloc_cluster_barrier([1])
            T.copy(x[b * 64, 0], mine)
            T.cluster_sync()
            other = T.block_rank_in_cluster() ^ 1
            if remote == "copy":
                T.copy_cluster(mine, theirs, dst_block=other, remote_barrier=done[0])
                T.mbarrier_wait_parity(done, 0)
            else:
                T.copy_cluster(mine, theirs, dst_block=other)
            T.cluster_sync()
            T.copy(theirs, y[b * 64, 0])

    return kernel


def multicast():
    """One block of a cluster loads a tile for both."""
    m = T.dynamic("m")

    @T.prim_func
    def kernel(x: T.Tensor((m * 32, 64), "float32"), y: T.Tensor((m * 64, 64), "float32")):
        with T.Kernel(m * 2, threads=128, cluster_dims=(2, 1, 1)) as b:
            s = T.alloc_shared((32, 64), "float32")
            T.copy_cluster(x[b // 2 * 32, 0], s, cluster_mask=3)
            T.copy(s, y[b * 32, 0])

    return kernel


SOURCES = {
    "stores": (lambda: exchange("stores"), "ptx_cluster_store"),
    "copy": (lambda: exchange("copy"), "tma_store_cluster"),
    "multicast": (multicast, "tma_load_multicast"),
}


@functools.cache
def lowered(name):
    found = lower(SOURCES[name][0](), "sm_90a", keep_stages=True)
    assert f"T.{SOURCES[name][1]}(" in str(found.device_mod)
    return found


def decide(kernel):
    report = prove_lowered(kernel, facts=FACTS, use_cache=False)
    assert not report.error and not report.unmodelled
    return report.properties


@pytest.mark.parametrize("name", SOURCES)
def test_memory_is_proved_and_what_peers_do_when_is_unknown_by_name(name):
    properties = decide(lowered(name))
    for found in PROVED:
        assert properties[found].verdict is Verdict.PROVED, found
    assert properties["races"].verdict is Verdict.UNKNOWN
    if name == "stores":  # which a bulk copy takes on; others are in test_peers.py
        assert properties["barriers"].verdict is Verdict.PROVED
        (why,) = properties["races"].reasons
        assert why.startswith("not modelled: theirs[")
        assert why.endswith("a copy or product under way, touches what other blocks store")
        return
    reason = "not modelled: accesses to another block's shared memory"
    assert properties["races"].reasons == [f"order {reason}"]


OUTSIDE = {
    "rank-of-no-peer": ("stores", lambda: argument("tl.ptx_cluster_store", 2, lambda e: e + 1)),
    "element-past-the-peers-tile": (
        "stores", lambda: argument("tl.ptx_cluster_store", 3, lambda e: e + 1)),
    "copy-to-no-peer": ("copy", lambda: argument("tl.tma_store_cluster", 2, constant(2))),
    "copy-past-the-peers-tile": (
        "copy", lambda: argument("tl.tma_store_cluster", 0, shifted_pointer(4))),
    "mask-of-three-blocks": (
        "multicast", lambda: argument("tl.tma_load_multicast", 3, constant(7))),
    "multicast-past-the-tile": (
        "multicast", lambda: argument("tl.tma_load_multicast", 2, shifted_pointer(32))),
}  # fmt: skip


@pytest.mark.parametrize("case", OUTSIDE)
def test_a_peer_just_outside_is_refuted(case):
    name, change = OUTSIDE[case]
    found = decide(changed(lowered(name), "device", "tirx.Call", change()))["bounds"]
    assert found.verdict is Verdict.REFUTED, found
    assert found.counterexamples[0].confirmed


def waiting(who):
    """A cluster's blocks wait for each other if `who` says so."""
    m = T.dynamic("m")

    @T.prim_func
    def kernel(y: T.Tensor((m * 2, 64), "float32")):
        with T.Kernel(m * 2, threads=64, cluster_dims=(2, 1, 1)) as b:
            t = T.get_thread_binding()
            if who(b, t):
                T.cluster_sync()
            y[b, t] = 0.0

    return kernel


@pytest.mark.parametrize(
    ("who", "verdict"),
    [
        (lambda b, t: b // 2 % 2 == 0, Verdict.PROVED),  # whole clusters
        (lambda b, t: b % 2 == 0, Verdict.REFUTED),  # one block of each
        (lambda b, t: t < 32, Verdict.REFUTED),
    ],
)
def test_all_threads_of_a_cluster_come_to_its_barrier(who, verdict):
    kernel = lower(waiting(who), "sm_90a", keep_stages=True)
    report = prove_lowered(kernel, facts={"dims": {"m": [1, 1 << 16]}}, use_cache=False)
    assert not report.unmodelled
    assert report.properties["barriers"].verdict is verdict


def test_a_grid_consists_of_whole_clusters_of_at_most_eight_blocks():
    m = T.dynamic("m")

    def kernel(size, blocks):
        @T.prim_func
        def kernel(y: T.Tensor((m * 16,), "float32")):
            with T.Kernel(blocks, threads=1, cluster_dims=(size, 1, 1)) as b:
                T.cluster_sync()
                y[b] = 0.0

        lowered = lower(kernel, "sm_90a", keep_stages=True)
        facts = {"dims": {"m": [1, 100]}}
        return prove_lowered(lowered, facts=facts, use_cache=False).properties["limits"]

    assert kernel(8, m * 8).verdict is Verdict.PROVED
    odd = kernel(8, m * 8 + 1)
    assert odd.verdict is Verdict.REFUTED
    assert "blocks along x beyond clusters of 8: 1, expected 0 to 0" in odd.reasons
    assert kernel(16, m * 16).verdict is Verdict.REFUTED
