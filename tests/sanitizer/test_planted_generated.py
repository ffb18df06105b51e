"""Bugs planted in the text TileLang generates: each is found for what it is.

An edit replaces a pattern in the text of a program; the program itself is the clean twin. The
pattern must match once: if TileLang prints something else one day, the test fails rather than plant
nothing.
"""

# ruff: noqa: E501 (an edit is a line of the table)
from __future__ import annotations

import dataclasses
import functools
import re

import pytest

from tileproof import sanitizer

from ..runtime.virtual.catalogue import PROGRAMS

RING = "ws_gemm", "sm_90a"  # explicit full and free barriers, three slots, wgmma
PIPE = "tma_gemm", "sm_90a"  # TileLang's own pipeline of two slots, TMA both ways
ASYNC = "tma_gemm", "sm_80"  # cp.async in two slots
COUNT = "histogram", "sm_80"
CHUNKS = "linear_attention", "sm_80"
ROWS = "softmax", "sm_80"
PICK = "gather", "sm_89"
BEST = "topk", "sm_89"
WAVES = "persistent", "sm_90a"

# name → (program, pattern, replacement, the kind that must be among the findings).
# fmt: off
EDITS = {
    # --- mbarriers of a producer and a consumer
    "consumer_does_not_wait": (RING, r"full\[\(k_1 % 3\)\]\.wait\(.*", "", "race"),
    "producer_does_not_wait": (RING, r"free\[\(k % 3\)\]\.wait\(.*", "", "race"),
    "consumer_waits_for_the_other_phase": (RING, r"\.wait\(\(k_1 / 3\)\)", ".wait((k_1 / 3) ^ 1)", "race"),
    "producer_waits_for_the_other_phase": (RING, r"\.wait\(\(\(k / 3\) \^ 1\)\)", ".wait(k / 3)", "deadlock"),
    "consumer_arrives_twice": (RING, r"(free\[\(k_1 % 3\)\]\.arrive\(\);)", r"\1 \1", "race"),
    "producer_arrives_twice": (RING, r"(full\[\(k % 3\)\]\.arrive\(\);)", r"\1 \1", "invalid"),
    "consumer_does_not_arrive": (RING, r"free\[\(k_1 % 3\)\]\.arrive\(\);", "", "deadlock"),
    "producer_does_not_arrive": (RING, r"full\[\(k % 3\)\]\.arrive\(\);", "", "deadlock"),
    "slot_given_back_before_it_is_read": (RING, r"(full\[\(k_1 % 3\)\]\.wait\(.*\))([\s\S]*)free\[\(k_1 % 3\)\]\.arrive\(\);", r"\1; free[(k_1 % 3)].arrive();\2", "race"),
    "one_arrival_too_many_expected": (RING, r"free\[0\]\.init\(128\)", "free[0].init(129)", "deadlock"),
    "barrier_of_no_arrivals": (RING, r"free\[0\]\.init\(128\)", "free[0].init(0)", "invalid"),
    "too_many_bytes_expected": (RING, r"expect_transaction\(8192\)(?=;\s*tl::tma_load\(A)", "expect_transaction(8208)", "deadlock"),
    "too_few_bytes_expected": (PIPE, r"arrive_and_expect_tx\(4096\)", "arrive_and_expect_tx(2048)", "deadlock"),
    "bytes_expected_at_the_wrong_slot": (PIPE, r"mbarrier\[\(k & 1\)\]\.expect_transaction", "mbarrier[((k + 1) & 1)].expect_transaction", "deadlock"),
    "expects_bytes_and_does_not_arrive": (PIPE, r"arrive_and_expect_tx", "expect_transaction", "deadlock"),
    "tma_fills_the_wrong_slot": (PIPE, r"a\)\[\(\(k & 1\)", "a)[((k + 1 & 1)", "race"),
    "wgmma_reads_the_wrong_slot": (PIPE, r"desc_b, \(\(k_1 & 1\)", "desc_b, ((k_1 + 1 & 1)", "race"),
    "one_slot_for_all": (PIPE, r"b\)\[\(\(k & 1\) \* 2048\)", "b)[(0)", "race"),
    "inits_are_not_waited_for": (RING, r"__syncthreads\(\);", "", "race"),
    "phase_count_of_the_second_wave": (WAVES, r"producer_phase_cnt\[0\] = 0;(?=\s*consumer)", "producer_phase_cnt[0] = 1;", "deadlock"),
    # --- matrix units and asynchronous copies
    "wgmma_not_waited_for": (RING, r"tl::warpgroup_wait<0>\(\);", "", "race"),
    "cp_async_not_waited_for": (ASYNC, r"tl::cp_async_wait<0>\(\);", "", "race"),
    "cp_async_waited_for_one_group_late": (ASYNC, r"tl::cp_async_wait<1>\(\);", "tl::cp_async_wait<2>();", "race"),
    "cp_async_not_committed": (ASYNC, r"tl::cp_async_commit\(\);(?=\s*tl::cp_async_wait<1>)", "", "race"),
    "cp_async_into_a_slot_still_read": (ASYNC, r"(k < 3; \+\+k\) \{\s*)__syncthreads\(\);", r"\1", "race"),
    "tma_store_read_source_not_waited_for": (PIPE, r"tl::tma_store_wait<0, true>\(\);", "", "invalid"),
    # --- barriers
    "store_of_a_tile_still_written": (PIPE, r"tl::__sync_thread_partial\(3, 128\);(?=\s*if)", "", "race"),
    "barrier_of_too_few_threads": (PIPE, r"tl::__sync_thread_partial\(3, 128\);(?=\s*if)", "tl::__sync_thread_partial(3, 64);", "race"),
    "barrier_of_too_many_threads": (PIPE, r"tl::__sync_thread_partial\(3, 128\);(?=\s*if)", "tl::__sync_thread_partial(3, 256);", "deadlock"),
    "tile_of_the_chunk_before_overwritten": (CHUNKS, r"(i_1 < 4; \+\+i_1\) \{\s*)__syncthreads\(\);", r"\1", "race"),
    "product_before_its_tiles_are_laid_down": (CHUNKS, r"__syncthreads\(\);(?=\s*for \(int ki_1 =)", "", "race"),
    "counts_read_before_all_are_counted": (COUNT, r"__syncthreads\(\);(?=\s*if[^{]*\{\s*if \(0 <)", "", "race"),
    # --- proxies
    "store_without_a_proxy_fence": (PIPE, r"tl::fence_proxy_async\(\);", "", "proxy-fence"),
    "proxy_fence_of_another_thread": (PIPE, r"(if \(tl::tl_shuffle_elect<128>\(\)\) \{\s*)tl::fence_proxy_async\(\);", r"if (threadIdx.x % 32 == 1) tl::fence_proxy_async(); \1", "proxy-fence"),
    "proxy_fence_after_the_store": (PIPE, r"tl::fence_proxy_async\(\);([\s\S]*tma_store_arrive\(\);)", r"\1 tl::fence_proxy_async();", "proxy-fence"),
    # --- bounds
    "guard_of_the_last_row": (RING, r"< m\)", "<= m)", "out-of-bounds"),
    "guard_of_the_last_row_of_a_copy": (ASYNC, r"(\(i_1 \* 32\).*)< m\) && (.*)< m\)", r"\1<= m) && \2<= m)", "out-of-bounds"),
    "guard_of_the_last_count": (COUNT, r"< n\)", "<= n)", "out-of-bounds"),
    "guard_of_none": (PICK, r"0 <= index", "-1 <= index", "out-of-bounds"),
    "one_row_further": (ROWS, r"\(int\)blockIdx\.x\)\) \* \(int64_t\)256\)(.*= __3)", r"(int)blockIdx.x) + 1) * (int64_t)256)\1", "out-of-bounds"),
    # --- uninitialised memory
    "counts_not_cleared": (COUNT, r"local\[.*\] = 0;", "", "uninitialised"),
    "counts_cleared_but_for_the_last": (COUNT, r"< 64\)(?= \{\s*local)", "< 63)", "uninitialised"),
    "second_slot_never_filled": (ASYNC, r"tl::cp_async_gs<16>\(.*(?=\s*\}\s*tl::cp_async_commit\(\);\s*tl::cp_async_wait)", "", "uninitialised"),
    "state_not_laid_down": (CHUNKS, r"\*\(uint1\*\)\(\(\(half_t\*\)before\).*", "", "uninitialised"),
    # --- alignment
    "pairs_at_an_odd_element": (RING, r"\*\(float2\*\)\(C \+ ", "*(float2*)(C + 1 + ", "misaligned"),
    "row_of_an_odd_width": (ROWS, r"\(int64_t\)256\)(?=[^;]*\)\) = __3)", "(int64_t)255)", "misaligned"),
    "tile_of_an_odd_pitch": (CHUNKS, r"\(\(\(half_t\*\)weights\) \+ ", "(((half_t*)weights) + 1 + ", "misaligned"),
    # --- global memory
    "all_rows_into_one": (ROWS, r"\(int64_t\)256\)(?=[^;]*\)\) = __3)", "(int64_t)0)", "race"),
    "waves_that_overlap": (WAVES, r"wave \* 16384\)(?=.*C_local)", "wave * 8192)", "race"),
    "sum_without_an_atomic": (COUNT, r"AtomicAdd\(\(&\((counts\[[^;]*\])\)\), (local[^;]*)\);", r"\1 += \2;", "race"),
    "write_to_the_table": (PICK, r"\*\(uint2\*\)\(y \+ (.*) = \*\(uint2\*\)\(table", r"*(uint2*)((half_t*)table + \1 = *(uint2*)(table", "const-write"),
    "write_to_the_input": (COUNT, r"AtomicAdd\(\(&\(counts\[", "AtomicAdd((&(((int*)x)[", "const-write"),
    "write_to_the_rows": (ROWS, r"\*\(float2\*\)\(y \+", "*(float2*)((float*)x +", "const-write"),
    # --- results
    "last_block_wins": (COUNT, r"AtomicAdd(?=\(\(&\(counts)", "atomicExch", "schedule-dependent"),
    "first_block_counts": (COUNT, r"AtomicAdd\(\(&\((counts\[.*\])\)\), local.*;", r"if (atomicAdd(&\1, 1) == 1) atomicAdd(&counts[0], (int)blockIdx.x);", "schedule-dependent"),
    "largest_number_of_a_block": (COUNT, r"AtomicAdd\(\(&\((counts\[.*\])\)\), local.*;", r"atomicCAS(&\1, 0, 1 + (int)blockIdx.x);", "schedule-dependent"),
    "indices_not_written": (BEST, r"indices\[.*", "", "unwritten"),
    "last_place_not_written": (BEST, r"values\[.*", "if (j < 3) { \\g<0> }", "unwritten"),
    "zeros_not_written": (PICK, r"\*\(uint2\*\)\(y \+ .*__pack_half2.*", "", "unwritten"),
    # --- progress
    "loop_that_stays": (BEST, r"\+\+j\)", "j += 0)", "endless"),
    "loop_that_runs_back": (CHUNKS, r"i_1 < 4; \+\+i_1", "i_1 < 4; i_1 += (i_1 == 3 ? -1 : 1)", "endless"),
    "row_that_goes_on": (ROWS, r"__syncthreads\(\);", "while (v[0] < 2) { __syncthreads(); v[1] = ((const volatile float*)x)[0]; }", "endless"),
}
# fmt: on


@functools.cache
def clean(program: str, arch: str) -> bool:
    lowered, facts = PROGRAMS[program].lowered(arch), PROGRAMS[program].facts
    return sanitizer.sanitize(lowered, facts=facts, draws=1).exit_code == 0


@pytest.mark.parametrize("name", EDITS)
def test_the_bug_is_found_and_the_program_itself_is_clean(name, monkeypatch):
    monkeypatch.setattr(sanitizer.run, "STEPS", 1 << 20)
    (program, arch), pattern, replacement, kind = EDITS[name]
    lowered, facts = PROGRAMS[program].lowered(arch), PROGRAMS[program].facts
    text, count = re.subn(pattern, replacement, lowered.cuda)
    assert count == 1 and text != lowered.cuda, f"the pattern matches {count} times"
    assert clean(program, arch)
    report = sanitizer.sanitize(dataclasses.replace(lowered, written=text), facts=facts, draws=1)
    (kernel,) = report.kernels
    assert not kernel.reason
    assert kind in {finding.kind for finding in kernel.findings}
