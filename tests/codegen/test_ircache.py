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
    "name",
    ["mhc/post", "quant/fp8_cast", "moe/combine", "moe/swiglu", "rope/rotate", "norm/kv_row"],
)
def test_architectures_alike_get_what_tilelang_makes_for_each(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TILEPROOF_CACHE", str(tmp_path))
    op = get(name)
    static = [d for d in op.dims if op.dims[d].static and op.dims[d].derived is None]
    spec = op.specialize(**{d: op.shapes["tiny"][d] for d in static})
    shared = {arch: ircache.lowered(spec, arch) for arch in ALL}
    shared |= {arch: ircache.lowered(spec, arch) for arch in ALL[::2]}  # some read, some made
    assert {arch: shared[arch].arch for arch in ALL} == {arch: arch for arch in ALL}
    assert len(list(tmp_path.rglob("*.ir"))) == 1
    new = lower.lower(spec, ALL[-1])
    monkeypatch.setattr(Variant, "lowered_for", lambda variant, arch: arch)
    for arch in ALL:
        own = lower.lower(spec, arch)
        assert own.cuda == shared[arch].cuda
        assert cache.ir_hash(own) == cache.ir_hash(shared[arch])
    # Of a guard that several statements share, TileLang may keep the line of any.
    assert [line is None for line in new.origins] == [line is None for line in own.origins]


def test_architectures_are_alike_within_a_variant() -> None:
    assert {Variant(print, ALL, {}, alike=True).lowered_for(a) for a in ALL} == {"sm_80"}
    newer = ("sm_120a", "sm_89", "sm_90a")
    assert {Variant(print, newer, {}, alike=True).lowered_for(a) for a in newer} == {"sm_89"}
    assert Variant(print, ALL, {}).lowered_for("sm_90a") == "sm_90a"
