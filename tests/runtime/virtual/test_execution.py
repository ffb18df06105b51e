"""The execution model: schedules, async copies, barriers, errors."""

import signal
import subprocess
import sys
import time

import pytest
import torch

from tileproof.runtime import virtual

from .support import kernel, run

SHARED = "extern __shared__ __align__(1024) float s[];"
COPY = "float* y, const float* x"


def staged(commit_wait: str = "tl::cp_async_wait<0>();", barrier: str = "__syncthreads();") -> str:
    """Each thread copies one float4 to shared memory; then all read another thread's."""
    return f"""
    {SHARED}
    tl::cp_async_gs<16>(s + tid * 4, x + tid * 4);
    tl::cp_async_commit();
    {commit_wait}
    {barrier}
    for (int i = 0; i < 4; ++i) y[tid * 4 + i] = s[(blockDim.x - 1 - tid) * 4 + i];
    """


def stage(body: str, **options) -> bool:
    x = torch.arange(512).float()
    y = torch.zeros(512)
    run(COPY, body, [y, x], block=(128,), smem=2048, **options)
    return torch.equal(y, x.view(128, 4).flip(0).reshape(-1))


SCHEDULES = [{"seed": s, "late": late} for s in (0, 1, 2, 3, 4) for late in (False, True)]


@pytest.mark.parametrize("options", SCHEDULES)
def test_a_correct_pipeline_passes_every_schedule(options):
    assert stage(staged(), **options)


def test_a_dropped_wait_shows_when_copies_are_late():
    assert stage(staged(commit_wait=""), late=False)
    assert not stage(staged(commit_wait=""), late=True)


def test_a_dropped_barrier_shows_in_some_schedule():
    assert not all(stage(staged(barrier=""), **options) for options in SCHEDULES)


def test_a_dropped_barrier_before_reuse_shows_in_some_schedule():
    body = staged() + "{barrier} s[tid * 4] = -1.f;"
    assert all(stage(body.format(barrier="__syncthreads();"), **o) for o in SCHEDULES)
    assert not all(stage(body.format(barrier=""), **o) for o in SCHEDULES)


def test_wait_group_leaves_the_newest_groups_pending():
    y = torch.zeros(2)
    run(
        COPY,
        f"""{SHARED}
        tl::cp_async_gs<4>(s, x); tl::cp_async_commit();
        tl::cp_async_gs<4>(s + 1, x + 1); tl::cp_async_commit();
        tl::cp_async_wait<1>();
        y[0] = s[0]; y[1] = s[1];""",
        [y, torch.tensor([5.0, 6.0])],
        block=(1,),
        smem=16,
        late=True,
    )
    assert y[0] == 5 and y[1].isnan()


def test_a_false_condition_fills_with_zero_and_reads_nothing():
    y = torch.ones(32)
    run(
        COPY,
        f"""{SHARED}
        tl::cp_async_gs_conditional<4>(s + tid, x + tid * 1000, tid == 0);
        tl::cp_async_wait<0>();
        y[tid] = s[tid];""",
        [y, torch.tensor([3.0])],
        smem=128,
    )
    assert y.tolist() == [3.0] + [0.0] * 31


@pytest.mark.parametrize("declaration", [SHARED, "__shared__ float s[32];"])
def test_unwritten_shared_memory_reads_as_nan_in_every_block(declaration):
    y = torch.zeros(4, 32)
    run(
        "float* y",
        f"{declaration} y[blockIdx.x * 32 + tid] = s[tid]; __syncwarp(); s[tid] = 1.f;",
        [y],
        grid=(4,),
        smem=128,
        threads=1,
    )
    assert y.isnan().all()


def test_indices_cover_a_three_dimensional_launch():
    y = torch.zeros(2 * 3 * 4, 2 * 4 * 8, dtype=torch.int32)
    run(
        "int* y",
        """
        int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
        int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
        y[block * 64 + thread] = block * 64 + thread;
        """,
        [y],
        grid=(4, 3, 2),
        block=(8, 4, 2),
        seed=3,
    )
    assert torch.equal(y.flatten(), torch.arange(24 * 64, dtype=torch.int32))


# --- errors ------------------------------------------------------------------------------------


def failure(body: str, args: list, **how) -> str:
    with pytest.raises(virtual.VirtualError) as caught:
        run(COPY, body, args, **how)
    return str(caught.value)


def test_out_of_bounds_names_block_thread_argument_and_offset():
    y, x = torch.zeros(128), torch.zeros(128)
    words = failure("y[blockIdx.x * 64 + tid + 1] = x[tid];", [y, x], grid=(2,), block=(64,))
    assert "kernel k, block (1, 0, 0), thread (63, 0, 0)" in words
    assert "write of 4 bytes" in words and "argument 'y' of 512 bytes, at byte offset 512" in words
    assert words.endswith("line 16 of the CUDA text: y[blockIdx.x * 64 + tid + 1] = x[tid];")


def test_out_of_bounds_read_before_the_first_element():
    words = failure("y[tid] = x[tid - 1];", [torch.zeros(32), torch.zeros(32)])
    assert "thread (0, 0, 0): out of bounds: read of 4 bytes" in words
    assert "argument 'x' of 128 bytes, at byte offset -4" in words


def test_async_copies_and_wide_loads_are_checked_in_run_mode_too():
    y, x = torch.zeros(32), torch.zeros(32)
    words = failure(
        SHARED + "tl::cp_async_gs<16>(s, x + 32);", [y, x], block=(1,), smem=16, checked=False
    )
    assert "read of 16 bytes" in words and "byte offset 128" in words
    words = failure(
        "ulonglong4 v = tl::load_global_256((const ulonglong4*)(x + 32)); y[0] = (float)v.x;",
        [y, x[:32]],
        block=(1,),
        checked=False,
    )
    assert "read of 32 bytes" in words


def test_shared_memory_beyond_the_launch_is_out_of_bounds():
    words = failure(SHARED + "s[tid + 16] = 1.f;", [torch.zeros(1), torch.zeros(1)], smem=128)
    assert "thread (16, 0, 0)" in words and "offset 128 of the block's dynamic shared" in words


def test_a_wild_address_is_an_error_not_a_crash():
    words = failure("y[1ll << 40] = 1.f;", [torch.zeros(1), torch.zeros(1)], checked=False)
    assert "unmapped memory" in words and "argument" in words


def test_writing_a_const_argument():
    words = failure("((float*)x)[tid] = 1.f;", [torch.zeros(32), torch.zeros(32)])
    assert "write of 4 bytes to argument 'x', which the kernel declares const" in words


def test_an_argument_passed_twice_may_be_written_through_its_writable_name():
    x = torch.zeros(32)
    run(COPY, "y[tid] = x[tid] + 1;", [x, x])
    assert x.tolist() == [1.0] * 32


def test_misaligned_vector_access():
    body = "*(float4*)(y + 1) = *(const float4*)x;"
    words = failure(body, [torch.zeros(8), torch.zeros(8)], block=(1,))
    assert "misaligned: access of type 'struct float4'" in words


def test_deadlock_says_who_waits_on_what():
    words = failure(
        "if (tid < 40) tl::__sync_thread_partial(1, 64); else if (tid < 64) __syncthreads();",
        [torch.zeros(1), torch.zeros(1)],
        block=(64,),
    )
    assert "deadlock: threads 40-63 wait on barrier 0 (24 of 64 threads arrived)" in words
    assert "threads 0-39 wait on barrier 1 (40 of 64 threads arrived)" in words


def test_exited_threads_do_not_hold_up_syncthreads():
    y = torch.zeros(64)
    run("float* y", "if (tid == 3) return; __syncthreads(); y[tid] = 1.f;", [y], block=(64,))
    assert y.sum() == 63


def test_lanes_that_disagree_about_a_collective():
    args = [torch.zeros(1), torch.zeros(1)]
    words = failure(
        "if (tid < 8) __shfl_sync(0xffffffffu, 1, 0); else __ballot_sync(0xffffffffu, 1);", args
    )
    assert "__ballot_sync" in words and "__shfl_sync" in words
    words = failure("__shfl_sync(1u, tid, 0);", args)
    assert "lane 1 is not in its own mask 0x00000001" in words


def test_barrier_counts_that_disagree():
    words = failure(
        "tl::__sync_thread_partial(2, tid < 32 ? 64 : 32);",
        [torch.zeros(1), torch.zeros(1)],
        block=(64,),
    )
    assert "barrier 2: this thread counts" in words


def test_device_assertions_stop_the_launch():
    words = failure(
        'device_assert_with_msg(tid != 9, "nine");', [torch.zeros(1), torch.zeros(1)], seed=0
    )
    assert "thread (9, 0, 0): device assertion failed: nine" in words


@pytest.mark.parametrize("body", ["while (*flag == 0);", "while (true) y[0] = 1.f;"])
def test_an_endless_loop_ends_with_its_budget(body):
    body = "const volatile int* flag = (const volatile int*)x;" + body
    words = failure(body, [torch.zeros(1), torch.zeros(1)], grid=(3,), steps=100000)
    assert "endless: no end after 100000 memory accesses of one block" in words


@pytest.mark.parametrize("checked", [False, True])
def test_an_endless_loop_that_accesses_nothing_ends_with_its_time(checked):
    body = 'for (unsigned i = 1; i; i += 2) __asm__ volatile("");'
    args = [torch.zeros(1), torch.zeros(1)]
    words = failure(body, args, grid=(3,), seconds=0.1, checked=checked)
    assert "endless: the kernel did not come to its end in the launch's time" in words


@pytest.mark.parametrize("loop", ['__asm__ volatile("");', "__syncthreads();"])
def test_ctrl_c_ends_a_launch(loop):
    """In a process of its own, as a user would: the interrupt, no error of ours, no hang."""
    code = f"""
import signal, torch
signal.signal(signal.SIGINT, signal.default_int_handler)  # started in the background it is ignored
from tileproof.runtime import virtual
text = {kernel("int* y", f"while (true) {{ {loop} }}")!r}
module = virtual.VirtualModule(text)
print("ready", flush=True)
try:
    module.launch("k", (4,), (64,), 0, [torch.zeros(1, dtype=torch.int32)])
except KeyboardInterrupt:
    print("interrupted")
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=20)[0] == "interrupted\n"
    assert process.returncode == 0


def test_a_launch_after_an_error_works():
    module = virtual.VirtualModule(kernel("int* y, int n", "y[tid / (n - 32)] = tid;"))
    y = torch.zeros(32, dtype=torch.int32)
    with pytest.raises(virtual.VirtualError, match="integer division"):
        module.launch("k", (2,), (32,), 0, [y, 32])
    module.launch("k", (2,), (32,), 0, [y, 33])
    assert y.tolist() == list(range(32))


@pytest.mark.parametrize(
    ("launch", "words"),
    [
        ({"smem": 232449}, "at most 232448"),
        ({"block": (1025,)}, "1 to 1024 threads, got 1025"),
        ({"grid": (1, 65536)}, "grid 1, 65536, 1"),
    ],
)
def test_launches_no_gpu_would_take(launch, words):
    assert words in failure("", [torch.zeros(1), torch.zeros(1)], **launch)
