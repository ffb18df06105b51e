"""Stores into other blocks' shared memory: what barriers of the cluster part is proved."""

import pytest
import tilelang.cuda.language as T
from tilelang import tvm

from tileproof.codegen.lower import lower
from tileproof.verify import Verdict, prove_lowered

FACTS = {"dims": {"m": [1, 1 << 16], "n": [0, 1 << 16]}}
WAYS = 4


def store(buffer, value, rank, *at):
    """buffer[at] of block `rank` = value."""
    place = 0
    for index, extent in zip(at, buffer.shape, strict=True):
        place = place * extent + index
    first = T.address_of(buffer[(0,) * len(at)])
    op = tvm.ir.Op.get("tl.ptx_cluster_store")
    return T.call_intrin("handle", op, first, value, rank, place)


def kernel(body, shape=(2, 64)):
    """Blocks of 64 threads, four of a cluster, with one buffer that others store into."""
    m, n = T.dynamic("m"), T.dynamic("n")

    @T.prim_func
    def kernel(x: T.Tensor((m, 64), "float32"), y: T.Tensor((m, WAYS, 64), "float32")):
        with T.Kernel(m, WAYS, threads=64, cluster_dims=(1, WAYS, 1)) as (b, rank):
            box = T.alloc_shared(shape, "float32")
            own = T.alloc_local((1,), "float32")
            own[0] = x[b, T.get_thread_binding()]
            body(x, y, b, rank, T.get_thread_binding(), box, own, n)

    return kernel


@T.macro
def ring(x, y, b, rank, t, box, own, n):
    """A value goes round in m steps; each half is read one step after it is stored."""
    T.cluster_sync()
    store(box, own[0], (rank + 1) % WAYS, 0, t)
    T.cluster_sync()
    for k in T.serial(x.shape[0]):
        own[0] = box[k % 2, t]
        store(box, own[0], (rank + 1) % WAYS, (k + 1) % 2, t)
        T.cluster_sync()
    y[b, rank, t] = own[0]


@T.macro
def one_half(x, y, b, rank, t, box, own, n):
    T.cluster_sync()
    store(box, own[0], (rank + 1) % WAYS, 0, t)
    T.cluster_sync()
    for _k in T.serial(x.shape[0]):
        own[0] = box[0, t]
        store(box, own[0], (rank + 1) % WAYS, 0, t)
        T.cluster_sync()
    y[b, rank, t] = own[0]


@T.macro
def barrier_of_the_block(x, y, b, rank, t, box, own, n):
    T.cluster_sync()
    store(box, own[0], (rank + 1) % WAYS, 0, t)
    T.sync_threads()
    own[0] = box[0, t]
    T.cluster_sync()
    y[b, rank, t] = own[0]


@T.macro
def own_thread_reads(x, y, b, rank, t, box, own, n):
    """A store into the block itself is seen by its own thread, in order."""
    T.cluster_sync()
    store(box, own[0], rank, 0, t)
    own[0] = box[0, t]
    T.cluster_sync()
    y[b, rank, t] = own[0]


@T.macro
def not_begun(x, y, b, rank, t, box, own, n):
    store(box, own[0], (rank + 1) % WAYS, 0, t)
    T.cluster_sync()
    y[b, rank, t] = box[0, t]


@T.macro
def ended(x, y, b, rank, t, box, own, n):
    T.cluster_sync()
    store(box, own[0], (rank + 1) % WAYS, 0, t)
    y[b, rank, t] = own[0]


@T.macro
def all_to_one(x, y, b, rank, t, box, own, n):
    T.cluster_sync()
    store(box, own[0], 0, 0, t)
    T.cluster_sync()
    y[b, rank, t] = own[0]


@T.macro
def all_to_one_apart(x, y, b, rank, t, box, own, n):
    T.cluster_sync()
    store(box, own[0], 0, rank, t)
    T.cluster_sync()
    if rank == 0:
        for r in T.serial(WAYS):
            y[b, r, t] = box[r, t]
    else:
        own[0] = 0.0


@T.macro
def last_alone(x, y, b, rank, t, box, own, n):
    """One block stores into all, into its own memory too."""
    T.cluster_sync()
    if rank == WAYS - 1:
        for r in T.serial(WAYS):
            store(box, own[0], r, 0, t)
    T.cluster_sync()
    y[b, rank, t] = box[0, t]


@T.macro
def cleared_beside(x, y, b, rank, t, box, own, n):
    """The block writes what others store, with only its own barrier between."""
    T.cluster_sync()
    box[0, t] = 0.0
    T.sync_threads()
    store(box, own[0], (rank + 1) % WAYS, 0, 63 - t)
    T.cluster_sync()
    y[b, rank, t] = box[0, t]


def copied(half):
    """A copy into one half of the box is under way where others store into the second."""

    @T.macro
    def body(x, y, b, rank, t, box, own, n):
        if t < 16:
            T.ptx_cp_async(
                T.access_ptr(box[half, t * 4], "w", 4), T.access_ptr(x[b, t * 4], "r", 4), 4
            )
        T.ptx_commit_group()
        T.cluster_sync()
        store(box, own[0], (rank + 1) % WAYS, 1, t)
        T.ptx_wait_group(0)
        T.cluster_sync()
        y[b, rank, t] = box[1, t]

    return body


SOUND = [ring, own_thread_reads, last_alone, copied(0), (all_to_one_apart, (4, 64))]
WRONG = {
    one_half: "there with no barrier of the cluster in between",
    barrier_of_the_block: "reads there with no barrier of the cluster in between",
    not_begun: "which may not have begun",
    ended: "which may have ended",
    all_to_one: "writes there with no barrier of the cluster in between",
    cleared_beside: "writes there with no barrier of the cluster in between",
}


def races(body, shape=(2, 64), arch="sm_100a"):
    lowered = lower(kernel(body, shape), arch, keep_stages=True)
    assert "T.ptx_cluster_store(" in str(lowered.device_mod)
    report = prove_lowered(lowered, facts=FACTS, use_cache=False)
    assert not report.error
    assert not report.unmodelled
    return report.properties["races"]


def named(case):
    body = case[0] if isinstance(case, tuple) else case
    return body.name


@pytest.mark.parametrize("case", SOUND, ids=named)
def test_parted_stores_are_proved(case):
    body, *shape = case if isinstance(case, tuple) else (case,)
    found = races(body, *shape)
    assert found.verdict is Verdict.PROVED, found.reasons


@pytest.mark.parametrize("body", WRONG, ids=named)
def test_what_no_barrier_of_the_cluster_parts_is_found(body):
    found = races(body)
    assert found.verdict in (Verdict.REFUTED, Verdict.ALARM)
    assert any(WRONG[body] in reason for reason in found.reasons), found.reasons
    assert found.verdict is Verdict.REFUTED or WRONG[body].startswith("which")


def test_a_copy_where_others_store_is_unknown_by_name():
    found = races(copied(1))
    assert found.verdict is Verdict.UNKNOWN
    (why,) = found.reasons
    assert why.endswith("a copy or product under way, touches what other blocks store")
