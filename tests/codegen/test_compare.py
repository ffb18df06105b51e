"""Resident warps by CUDA's occupancy rules, and bundles compared figure by figure."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tileproof.codegen.compare import compare
from tileproof.codegen.occupancy import Occupancy, occupancy
from tileproof.codegen.resources import Resources
from tileproof.dsl import arch

FINE = Resources("k", 64, 0, 0, 0, 0, 0, 128, 100, {"HMMA": 8}, 9000, {"LDG.16": 4, "STG.4": 2})


@pytest.mark.parametrize(
    ("change", "name", "expected"),
    [
        # 64 registers: 2048 a warp, 8 warps in each quarter of 16384
        ({}, "sm_80", Occupancy(8, 32, 64, "registers")),
        # 65 are given as 72: 2304 a warp, 7 a quarter, 28 warps in blocks of four
        ({"registers": 65}, "sm_80", Occupancy(7, 28, 64, "registers")),
        # 32 registers leave room for 64 warps, 8.9 holds 48
        ({"registers": 32}, "sm_89", Occupancy(12, 48, 48, "warps")),
        # 100 KiB of 227: with 1 KiB for the system two blocks fit on 9.0, none more
        ({"dynamic_smem": 100 << 10}, "sm_90a", Occupancy(2, 8, 64, "shared memory")),
        # one warp a block: at most 32 blocks on 8.0, 24 on 12.0
        ({"registers": 16, "threads": 32}, "sm_80", Occupancy(32, 32, 64, "blocks")),
        ({"registers": 16, "threads": 32}, "sm_120a", Occupancy(24, 24, 48, "blocks")),
        # whole quarters: 5 warps of 168 registers (5376 a warp, 3 a quarter, 12 warps) fit twice
        ({"registers": 168, "threads": 160}, "sm_80", Occupancy(2, 10, 64, "registers")),
    ],
)
def test_resident_warps(change, name, expected):
    assert occupancy(replace(FINE, **change), arch(name)) == expected


def manifest(*kernels: Resources, verdict: str | None = "PROVED") -> dict:
    proofs = None if verdict is None else {"verdict": verdict}
    built = {"resources": [k.to_json() for k in kernels], "proofs": proofs}
    return {"specializations": {"op__D64": {"archs": {"sm_80": built}}}}


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"spill_loads": 4}, {"spilled bytes"}),
        ({"registers": 65}, {"registers", "resident warps"}),
        ({"static_smem": 16}, {"shared memory"}),
        ({"sass": {"HMMA": 7}}, {"matrix instructions"}),
        ({"widths": {"LDG.8": 4, "STG.4": 2}}, {"narrow accesses"}),
        ({"instructions": 106}, {"instructions"}),
        ({"cubin_bytes": 9451}, {"cubin bytes"}),
    ],
)
def test_what_is_worse_one_way_is_better_the_other(change, what):
    changed = replace(FINE, **change)
    worse = compare(manifest(FINE), manifest(changed), percent=5.0)
    assert {c.what for c in worse if c.worse} == what
    better = compare(manifest(changed), manifest(FINE), percent=5.0)
    assert {c.what for c in better} >= what
    assert not any(c.worse for c in better)


def test_code_may_grow_by_the_percentage_and_no_more():
    grown = manifest(replace(FINE, instructions=105, cubin_bytes=9450))
    assert not any(c.worse for c in compare(manifest(FINE), grown, percent=5.0))
    assert sum(c.worse for c in compare(manifest(FINE), grown)) == 2


def test_a_kernel_that_is_gone_and_a_proof_that_is_lost_are_worse():
    (gone,) = compare(manifest(FINE), {"specializations": {}})
    assert (gone.kernel, gone.arch, gone.what, gone.worse) == ("op__D64", "sm_80", "kernel", True)
    (new,) = compare({"specializations": {}}, manifest(FINE))
    assert not new.worse
    for lost in (None, "UNKNOWN"):
        (change,) = compare(manifest(FINE), manifest(FINE, verdict=lost))
        assert (change.what, change.old, change.worse) == ("proof", "PROVED", True)
    (won,) = compare(manifest(FINE, verdict=None), manifest(FINE))
    assert not won.worse
    assert compare(manifest(FINE), manifest(FINE)) == []
