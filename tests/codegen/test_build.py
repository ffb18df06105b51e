"""Builds: once for the same inputs, the same bytes, all or nothing."""

from __future__ import annotations

import filecmp
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tileproof.codegen import build as building
from tileproof.codegen import device, host, ircache, lower, sass
from tileproof.codegen.build import MODELS, build, default_specs, specs_for_model
from tileproof.codegen.bundle import describe
from tileproof.codegen.toolchain import ToolchainError
from tileproof.dsl import ContractError, get, load_library
from tileproof.runtime.bundle import Bundle, read_manifest

ARCHS = ["sm_80", "sm_90a"]


def small():
    """Two specializations that take the fewest seconds."""
    return [get("mhc/collapse").specialize(N=2, D=32), get("mhc/post").specialize(N=2, D=32)]


def same_tree(a: Path, b: Path) -> bool:
    names = sorted(str(p.relative_to(a)) for p in a.rglob("*") if p.is_file())
    others = sorted(str(p.relative_to(b)) for p in b.rglob("*") if p.is_file())
    return names == others and filecmp.cmpfiles(a, b, names, shallow=False)[0] == names


def test_two_builds_of_one_source_are_equal_byte_for_byte(tmp_path, monkeypatch):
    """Each from nothing: one here, one in worker processes, in folders of different names."""
    monkeypatch.setenv("TILEPROOF_CACHE", str(tmp_path / "first-cache"))
    first = build(small()[:1], ARCHS, tmp_path / "first", jobs=1)
    monkeypatch.setenv("TILEPROOF_CACHE", str(tmp_path / "another"))
    second = build(small()[:1], ARCHS[::-1], tmp_path / "deeper" / "second", jobs=2)
    assert same_tree(first, second)


def test_nothing_runs_when_nothing_changed(tmp_path, monkeypatch):
    first = build(small(), ARCHS, tmp_path / "first")

    def refuse(*args, **kwargs):
        raise AssertionError("a compiler ran")

    for module, name in ((device, "run"), (sass, "run"), (host, "run"), (lower, "lower")):
        monkeypatch.setattr(module, name, refuse)
    events = []
    second = build(small(), ARCHS, tmp_path / "second", on_event=events.append)
    assert same_tree(first, second)
    assert [(e.done, e.total, e.cached) for e in events] == [(i, 4, True) for i in range(1, 5)]


def test_a_changed_kernel_source_is_lowered_again(tmp_path, monkeypatch):
    spec = small()[0]
    build([spec], ["sm_80"], tmp_path / "out")
    lowered = []
    real = lower.lower
    monkeypatch.setattr(ircache, "_sources", lambda: str(tmp_path))
    monkeypatch.setattr(lower, "lower", lambda *a, **k: lowered.append(a) or real(*a, **k))
    build([spec], ["sm_80"], tmp_path / "out")
    assert lowered == [(spec, "sm_80")]


def test_a_killed_build_leaves_nothing(tmp_path, own_cache):
    script = """
        import os, signal, sys
        from tileproof.codegen.build import build
        from tileproof.dsl import get
        specs = [get("mhc/post").specialize(N=2, D=D) for D in (32, 64, 96)]
        kill = lambda event: os.kill(os.getpid(), signal.SIGKILL)
        build(specs, ["sm_80"], sys.argv[1], jobs=int(sys.argv[2]), on_event=kill)
    """
    out = tmp_path / "bundles"
    out.mkdir()
    for jobs in "12":
        command = [sys.executable, "-c", textwrap.dedent(script), str(out / "b"), jobs]
        assert subprocess.run(command).returncode == -signal.SIGKILL
        assert not list(out.iterdir())
    specs = [get("mhc/post").specialize(N=2, D=32)]
    assert read_manifest(build(specs, ["sm_80"], out / "b"))["archs"].keys() == {"sm_80"}
    assert os.listdir(out) == ["b"]  # noqa: PTH208


def test_a_failed_build_keeps_the_old_bundle(tmp_path, monkeypatch):
    out = build(small()[:1], ["sm_80"], tmp_path / "out")
    before = (out / "manifest.json").read_bytes()

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr("tileproof.codegen.bundle.atomic_write", fail)
    with pytest.raises(OSError, match="disk full"):
        build(small(), ["sm_80"], out)
    assert (out / "manifest.json").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_bundle_is_replaced_and_nothing_else_is(tmp_path):
    out = build(small()[:1], ["sm_80"], tmp_path / "out")
    build(small()[1:], ["sm_80"], out)
    assert list(read_manifest(out)["ops"]) == ["mhc/post"]
    assert {p.stat().st_mode & 0o444 for p in [out, *out.rglob("*")]} == {0o444}
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("")
    with pytest.raises(ContractError, match=r"output folder: got .*mine with other files, exp"):
        build(small()[:1], ["sm_80"], mine)
    assert (mine / "thesis.tex").exists()


def test_errors_of_workers_arrive_here():
    command = [sys.executable, "-c", "from tileproof.codegen.build import _serve; _serve()"]
    job = {"op": "no/op", "sizes": {}, "arch": "sm_80", "toolkit": "pip"}
    done = subprocess.run(command, input=json.dumps(job), capture_output=True, text=True)
    with pytest.raises(ContractError, match="op: got 'no/op', expected one of attention/out_rope"):
        building._raise_reply(done.stdout, "no_op on sm_80")
    with pytest.raises(ToolchainError, match="no_op on sm_80: the build worker died"):
        building._raise_reply("", "no_op on sm_80")


def test_what_nobody_can_build_is_refused(tmp_path):
    with pytest.raises(ContractError, match="architecture: got 'sm_75', expected one of sm_80"):
        build(small(), ["sm_75"], tmp_path / "out")
    with pytest.raises(ContractError, match="kernels to build: got none"):
        build([], ARCHS, tmp_path / "out")


def test_proofs_are_recorded(tmp_path):
    symbol = small()[0].symbol
    proofs = {(symbol, "sm_80"): {"verdict": "PROVED"}}
    out = build(small()[:1], ARCHS, tmp_path / "out", proofs=proofs)
    archs = read_manifest(out)["specializations"][symbol]["archs"]
    assert archs["sm_80"]["proofs"] == {"verdict": "PROVED"}
    assert archs["sm_90a"]["proofs"] is None
    with pytest.raises(ContractError, match="sm_89, expected those of kernels to build"):
        build(small()[:1], ARCHS, tmp_path / "out", proofs={(symbol, "sm_89"): {}})


def test_ptx_of_the_architectures_it_is_portable_from(tmp_path):
    out = build(small()[:1], ARCHS, tmp_path / "out", ptx=True)
    manifest = read_manifest(out)
    assert {a: facts["ptx"] for a, facts in manifest["archs"].items()} == {
        "sm_80": [8, 0],
        "sm_90a": None,
    }
    built = manifest["specializations"][small()[0].symbol]["archs"]
    assert built["sm_90a"]["ptx"] is None
    text = Bundle(out).read(built["sm_80"]["ptx"]).decode()
    assert ".target sm_80" in text
    assert f".entry {built['sm_80']['launches'][0]['kernel']}(" in text
    with pytest.raises(ContractError, match="PTX of: got sm_90a, expected sm_80 or sm_89 too"):
        build(small()[:1], ["sm_90a"], tmp_path / "out", ptx=True)


def test_the_default_is_the_whole_library_at_both_models_sizes():
    specs = default_specs()
    assert {s.op.name for s in specs} == {n for n, op in load_library().items() if op.model_sizes}
    hidden = {s.dims["D"] for s in specs if s.op.name == "mhc/post"}
    assert hidden == {4096, 7168}
    with pytest.raises(ContractError, match=r"model: got \['nano'\], expected among"):
        default_specs(["nano"])


def test_a_models_specializations_follow_its_config():
    config = {**MODELS["flash"], "hidden_size": 128}
    specs = specs_for_model(config, "f32")
    assert {s.dims["D"] for s in specs if s.op.name == "mhc/post"} == {128}
    assert {s.types["act"] for s in specs if "act" in s.types} == {"f32"}
    for dtype, act in (("bfloat16", "bf16"), ("float32", "f32")):
        specs = specs_for_model({**config, "dtype": dtype})
        assert {s.types["act"] for s in specs if "act" in s.types} == {act}
    with pytest.raises(ContractError, match="dtype of the model: got float16, expected one of"):
        specs_for_model({**config, "dtype": "float16"})


@pytest.mark.parametrize("name", sorted(load_library()))
def test_every_op_can_be_described(name):
    described = describe(get(name))
    assert described["reference"]["path"].startswith("tileproof.kernels.")
    known = {*described["dims"], *described["params"], *described["types"]}
    assert set(described["reference"]["takes"]) <= known
