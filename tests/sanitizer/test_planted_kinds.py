"""What the planted bugs of the other files cover: every kind of finding and every class of mistake
at least three times, each beside a clean twin."""

import re
from collections import Counter
from pathlib import Path

import pytest

from tileproof.runtime import virtual
from tileproof.sanitizer import run as runner
from tileproof.sanitizer.model import KINDS

from . import test_planted, test_planted_gangs, test_planted_generated, test_planted_tensor

BUGS = {
    name: kind
    for cases in (test_planted.CASES, test_planted_gangs.CASES, test_planted_tensor.CASES)
    for name, (kind, *_) in cases.items()
} | {name: kind for name, (*_, kind) in test_planted_generated.EDITS.items()}

# fmt: off
CLASSES = {
    "dropped wait": (
        "dropped_wait cp_async_not_waited_for cp_async_waited_for_one_group_late"
        " wgmma_not_waited_for consumer_does_not_wait store_not_waited_for"),
    "dropped barrier": (
        "missing_barrier inits_are_not_waited_for store_of_a_tile_still_written"
        " counts_read_before_all_are_counted"),
    "slot reused while it is read": (
        "write_after_read copy_into_a_tile_still_read cp_async_into_a_slot_still_read"
        " slot_given_back_before_it_is_read tile_of_the_chunk_before_overwritten"),
    "wrong parity": (
        "mbarrier_waited_for_with_the_wrong_parity consumer_waits_for_the_other_phase"
        " producer_waits_for_the_other_phase phase_count_of_the_second_wave"),
    "over-arrival": "mbarrier_over_arrival consumer_arrives_twice producer_arrives_twice",
    "missing arrival": (
        "mbarrier_arrival_missing consumer_does_not_arrive producer_does_not_arrive"
        " expects_bytes_and_does_not_arrive"),
    "wrong expect_tx": (
        "too_many_bytes_expected too_few_bytes_expected bytes_expected_at_the_wrong_slot"),
    "wrong ring slot": "tma_fills_the_wrong_slot wgmma_reads_the_wrong_slot one_slot_for_all",
    "missing proxy fence": (
        "store_without_a_proxy_fence proxy_fence_of_another_thread proxy_fence_after_the_store"
        " wgmma_without_proxy_fence operands_without_a_proxy_fence"),
    "guard off by one": (
        "guard_off_by_one guard_of_the_last_row guard_of_the_last_row_of_a_copy"
        " guard_of_the_last_count guard_of_none"),
    "uninitialised read": (
        "shared_never_written counts_not_cleared counts_cleared_but_for_the_last"
        " second_slot_never_filled state_not_laid_down"),
    "misaligned vector": (
        "misaligned_float4 pairs_at_an_odd_element row_of_an_odd_width tile_of_an_odd_pitch"),
    "blocks that write one place": (
        "blocks_write_one_place all_rows_into_one waves_that_overlap sum_without_an_atomic"),
    "cluster barrier omitted": (
        "no_cluster_barrier_before_reading_a_peer writing_to_a_peer_that_still_reads"
        " exit_while_a_peer_reads writing_to_a_peer_before_it_runs"),
    "tensor memory leaked": (
        "never_freed freed_by_nobody_who_comes_by second_allocation_forgotten"),
}
# fmt: on


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_three_planted_bugs(kind):
    counts = Counter(BUGS.values())
    # A launch is not text: its mistakes are parameters of one test.
    counts["launch"] = len(test_planted.BAD_LAUNCHES)
    assert counts[kind] >= 3


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_of_mistake_is_planted_three_times(name):
    names = CLASSES[name].split()
    assert len(set(names)) == len(names) >= 3
    assert set(names) <= set(BUGS)


def test_names_of_planted_bugs_are_unique():
    tables = (test_planted, test_planted_gangs, test_planted_tensor)
    names = [n for m in tables for n in m.CASES] + [*test_planted_generated.EDITS]
    assert [n for n, count in Counter(names).items() if count > 1] == []


def test_the_kinds_are_those_the_code_reports():
    sources = [*(Path(virtual.__file__).parent / "csrc").glob("*.cpp"), Path(runner.__file__)]
    text = "\n".join(path.read_text() for path in sources)
    reported = set(re.findall(r'"([a-z]+(?:-[a-z]+)*)"', text)) & set(KINDS)
    assert reported == set(KINDS)
