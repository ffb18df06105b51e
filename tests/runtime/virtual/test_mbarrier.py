"""mbarriers: counts, phases, transaction bytes, and what the PTX manual forbids."""

import pytest
import torch

from tileproof.runtime import virtual

from .support import kernel, run

SCHEDULES = [{"seed": s, "late": late} for s in (0, 1, 2, 3) for late in (False, True)]
SHARED = "extern __shared__ __align__(1024) float s[];"
BARRIERS = """
    __shared__ __align__(16) uint64_t memory[4];
    auto bar = reinterpret_cast<Barrier*>(memory);
"""

# Warp 0 produces 12 values into a ring of two slots, warp 1 consumes them. As in TileLang's code,
# only one lane produces; the others wait beside it.
RING = f"""{SHARED}{BARRIERS}
    if (tid == 0) {{
      for (int i = 0; i < 2; ++i) {{ bar[i].init(1); bar[2 + i].init(32); }}
    }}
    tl::fence_barrier_init();
    __syncthreads();
    if (tid < 32) {{
      for (int k = 0; k < 12; ++k) {{
        EMPTY_WAIT;
        if (tl::tl_shuffle_elect<32>()) {{ s[k & 1] = (float)k; FULL_ARRIVE; }}
      }}
    }} else {{
      for (int k = 0; k < 12; ++k) {{
        FULL_WAIT;
        y[k * 32 + tid - 32] = s[k & 1];
        EMPTY_ARRIVE;
      }}
    }}
"""
RING_PARTS = {
    "EMPTY_WAIT": "bar[2 + (k & 1)].wait(k / 2 % 2 ^ 1)",
    "FULL_ARRIVE": "bar[k & 1].arrive()",
    "FULL_WAIT": "bar[k & 1].wait(k / 2 % 2)",
    "EMPTY_ARRIVE": "bar[2 + (k & 1)].arrive()",
}


def ring(**changes: str) -> list[str]:
    """What each schedule makes of the ring: "right", "wrong" or the error."""
    body = RING
    for name, text in {**RING_PARTS, **changes}.items():
        body = body.replace(name, text)
    module = virtual.VirtualModule(kernel("float* y", body), checked=True)
    outcomes = []
    for options in SCHEDULES:
        y = torch.full((12, 32), -1.0)
        try:
            module.launch("k", (1,), (64,), 8, [y], options=virtual.VirtualOptions(**options))
            right = torch.equal(y, torch.arange(12.0)[:, None].expand(12, 32))
            outcomes.append("right" if right else "wrong")
        except virtual.VirtualError as error:
            outcomes.append(str(error))
    return outcomes


def test_a_ring_of_slots_passes_every_schedule():
    assert ring() == ["right"] * len(SCHEDULES)
    polls = "while (!bar[k & 1].try_wait(k / 2 % 2)) {}"
    assert ring(FULL_WAIT=polls) == ["right"] * len(SCHEDULES)


@pytest.mark.parametrize(
    "change",
    [
        {"FULL_WAIT": ""},
        {"FULL_WAIT": "bar[k & 1].wait(k / 2 % 2 ^ 1)"},
        {"EMPTY_WAIT": ""},
        {"EMPTY_WAIT": "bar[2 + (k & 1)].wait(k / 2 % 2)"},
        {"EMPTY_ARRIVE": ""},
        {"FULL_ARRIVE": ""},
        {"FULL_ARRIVE": "bar[k & 1].arrive_and_expect_tx(4)"},
    ],
    ids=lambda change: " ".join(f"{k}={v}" for k, v in change.items()),
)
def test_every_mistake_in_the_ring_shows(change):
    assert set(ring(**change)) != {"right"}


def failure(body: str, block: int = 32, **options) -> str:
    with pytest.raises(virtual.VirtualError) as caught:
        run("float* y", f"{SHARED}{BARRIERS}{body}", [torch.zeros(64)], block=(block,), **options)
    return str(caught.value)


def test_a_deadlock_names_the_barrier_its_phase_and_what_is_missing():
    body = """
    uint64_t* dynamic = (uint64_t*)s + 2;
    if (tid == 0) tl::mbarrier_init(*dynamic, 3);
    __syncthreads();
    if (tid == 1) tl::mbarrier_arrive_expect_tx(*dynamic, 96);
    tl::mbarrier_wait(*dynamic, 0);
    """
    words = failure(body, smem=32)
    assert "deadlock: threads 0-31 wait on mbarrier at shared+0x10" in words
    assert "end of a phase of parity 0 (now in one of parity 0" in words
    assert "2 of 3 arrivals and 96 bytes outstanding" in words
    # A loop of polls ends too.
    words = failure("if (tid == 0) bar[0].init(1); __syncthreads(); while (!bar[0].try_wait(0)) {}")
    assert "1 of 1 arrivals and 0 bytes outstanding" in words


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("bar[0].arrive();", "is not initialised"),
        ("bar[0].init(0);", "count of 0, expected 1 to 1048575"),
        ("bar[0].init(1 << 20);", "count of 1048576, expected 1 to 1048575"),
        ("bar[0].init(1); bar[0].wait(2);", "a phase parity is 0 or 1, got 2"),
        ("bar[0].init(2); for (int i = 0; i < 2; ++i) bar[0].expect_transaction(1048575);",
         "transaction count 2097150 leaves -1048575 to 1048575"),
        ("bar[0].init(1); bar[0].arrive_and_expect_tx(1); bar[0].arrive();",
         "over-arrival, all 1 arrivals of the phase have come"),
        ("((Barrier*)((char*)memory + 4))->init(1);", "misaligned: access of"),
        ("((Barrier*)y)->init(1);", "which is not shared memory"),
        ("((Barrier*)s)->init(1);", "of the block's dynamic shared memory, which has 4"),
    ],
)  # fmt: skip
def test_what_hardware_forbids_is_an_error(body, words):
    assert words in failure(body, block=1, smem=4)


def test_polls_waits_and_parities_follow_the_phase():
    y = torch.zeros(8)
    run(
        "float* y",
        f"""{BARRIERS}
        bar[0].init(1);
        y[0] = bar[0].try_wait(0); y[1] = bar[0].try_wait(1);
        bar[0].wait(1);  // the phase before the first counts as ended
        bar[0].arrive();
        y[2] = bar[0].test_wait(0); y[3] = bar[0].test_wait(1);
        bar[0].expect_transaction(5); bar[0].arrive();
        y[4] = bar[0].try_wait(1);
        vgpu_mbarrier_complete_tx(memory, 5);
        y[5] = bar[0].try_wait(1);
        // Bytes may come before they are expected.
        vgpu_mbarrier_complete_tx(memory, 7); bar[0].arrive_and_expect_tx(7);
        y[6] = bar[0].try_wait(0);
        tl::syncthreads_partial(memory[0]);
        y[7] = bar[0].try_wait(1);
        """,
        [y],
        block=(1,),
    )
    assert y.tolist() == [0, 1, 1, 0, 0, 1, 1, 1]


# Each lane copies one float; the barrier says when all copies have landed.
COPIES = f"""{SHARED}{BARRIERS}
    if (tid == 0) bar[0].init(COUNT);
    __syncthreads();
    tl::cp_async_gs<4>(s + tid, x + tid);
    ARRIVE
    bar[0].wait(0);
    y[tid] = s[31 - tid];
"""


@pytest.mark.parametrize("options", SCHEDULES)
def test_cp_async_arrives_when_its_copies_are_done(options):
    x = torch.arange(32.0)

    def copied(count: int, arrive: str) -> bool:
        body = COPIES.replace("COUNT", str(count)).replace("ARRIVE", arrive)
        y = torch.zeros(32)
        run("float* y, const float* x", body, [y, x], smem=128, **options)
        return torch.equal(y, x.flip(0))

    assert copied(32, "tl::mbarrier_cp_async_arrive_noinc(memory[0]);")
    assert copied(32, "tl::mbarrier_cp_async_arrive(bar[0]); bar[0].arrive();")
    if options["late"]:
        assert not copied(32, "bar[0].arrive();")
        with pytest.raises(virtual.VirtualError, match="32 of 32 arrivals"):
            # Counted once more and arrived once more: nothing is left for the 32.
            copied(32, "tl::mbarrier_cp_async_arrive(memory[0]);")
