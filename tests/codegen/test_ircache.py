"""What comes back from the cache is the kernel that went in, to the prover and to the compiler."""

from __future__ import annotations

from pathlib import Path

import pytest

from tileproof.codegen import ircache, lower
from tileproof.dsl import ALL, get
from tileproof.dsl.spec import Variant
from tileproof.verify import Verdict, cache, prove_lowered
from tileproof.verify.arena import shared_sizes


def test_a_cached_lowering_is_the_fresh_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TILEPROOF_CACHE", str(tmp_path))
    spec = get("mhc/prenorm_gemm").specialize(N=4, D=64, C=24)
    fresh = ircache.lowered(spec, "sm_90a")
    monkeypatch.setattr(lower, "lower", lambda *_, **__: pytest.fail("lowered again"))
    cached = ircache.lowered(spec, "sm_90a")
    assert cached.cuda == fresh.cuda
    assert cache.ir_hash(cached) == cache.ir_hash(fresh)
    assert shared_sizes(cached.stages) == shared_sizes(fresh.stages) != {}
    assert cached.parameters == fresh.parameters
    launch, other = cached.launches[0], fresh.launches[0]
    assert (launch.kernel, launch.args) == (other.kernel, other.args)
    assert list(map(str, launch.grid)) == list(map(str, other.grid))
    assert prove_lowered(cached, use_cache=False).verdict is Verdict.PROVED


def test_a_damaged_entry_is_lowered_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEPROOF_CACHE", str(tmp_path))
    spec = get("norm/rmsnorm_unweighted").specialize(D=64)
    fresh = ircache.lowered(spec, "sm_80")
    (entry,) = tmp_path.rglob("*.ir")
    entry.write_bytes(entry.read_bytes()[:100])
    again = ircache.lowered(spec, "sm_80")
    assert again.cuda == fresh.cuda
    assert len(entry.read_bytes()) > 100


@pytest.mark.parametrize(
    ("name", "programs"),
    [
        *(("mhc/post", 2), ("quant/fp8_cast", 2), ("moe/combine", 2), ("gemm/experts", 2)),
        *(("compressor/pool_fp4", 1), ("moe/permute", 1), ("moe/swiglu", 1), ("rope/rotate", 1)),
    ],
)
def test_architectures_alike_get_what_tilelang_makes_for_each(
    name: str, programs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TILEPROOF_CACHE", str(tmp_path))
    op = get(name)
    static = [d for d in op.dims if op.dims[d].static and op.dims[d].derived is None]
    spec = op.specialize(**{d: op.shapes["tiny"][d] for d in static})
    shared = {arch: ircache.lowered(spec, arch) for arch in ALL}
    assert {arch: shared[arch].arch for arch in ALL} == {arch: arch for arch in ALL}
    assert len(list(tmp_path.rglob("*.ir"))) == programs
    monkeypatch.setattr(Variant, "lowered_for", lambda variant, arch: arch)
    for arch in ALL:
        assert lower.lower(spec, arch).cuda == shared[arch].cuda


def test_architectures_are_alike_within_a_variant() -> None:
    groups = (("sm_80", "sm_89", "sm_90a"), ("sm_100a", "sm_120a"))
    assert [Variant(print, ALL, {}, alike=groups).lowered_for(a) for a in ALL] == [
        *("sm_80", "sm_80", "sm_80", "sm_100a", "sm_100a")
    ]
    newer = ("sm_89", "sm_90a", "sm_120a")
    assert [Variant(print, newer, {}, alike=groups).lowered_for(a) for a in newer] == [
        *("sm_89", "sm_89", "sm_120a")
    ]
    assert Variant(print, ALL, {}).lowered_for("sm_90a") == "sm_90a"
