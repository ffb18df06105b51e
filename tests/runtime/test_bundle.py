"""A bundle is used only as it was built, and only where it can run."""

from __future__ import annotations

import gc
import hashlib
import json
import re

import pytest

from tileproof.runtime import BundleError, load, loader
from tileproof.runtime.bundle import SCHEMA, Bundle, read_manifest


def rewrite(folder, change):
    """Change the manifest and its hash alike, as another build would have written it."""
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    text = json.dumps(manifest)
    (folder / "manifest.json").write_text(text)
    (folder / "manifest.sha256").write_text(hashlib.sha256(text.encode()).hexdigest())


def test_every_listed_file_is_as_built(bundle):
    opened = Bundle(bundle)
    listed = opened.manifest["files"]
    found = {str(p.relative_to(bundle)) for p in bundle.rglob("*") if p.is_file()}
    assert found == {*listed, "manifest.json", "manifest.sha256"}
    for name, facts in listed.items():
        assert len(opened.read(name)) == facts["bytes"]


def test_no_garbage_is_collected_while_a_bundle_loads(bundle, copied, monkeypatch):
    collecting = []

    class Watched(Bundle):
        def __init__(self, path):
            collecting.append(gc.isenabled())
            super().__init__(path)

    monkeypatch.setattr(loader, "Bundle", Watched)
    load(bundle, backend="null")
    assert gc.isenabled()
    (copied / "manifest.json").write_text("{}")
    with pytest.raises(BundleError):
        load(copied)
    assert gc.isenabled()
    assert collecting == [False, False]


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[:-9] + b"x" + b[-8:]])
def test_a_damaged_manifest(copied, damage):
    path = copied / "manifest.json"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(
        BundleError, match=r"manifest.json: got sha256 \w{16}… over \d+ bytes, expected"
    ):
        load(copied)


def test_a_missing_manifest(tmp_path):
    with pytest.raises(BundleError, match=r"manifest.json: got no such file, expected a bundle's"):
        load(tmp_path)


def test_another_schema(copied):
    rewrite(copied, lambda m: m.update(schema=99))
    with pytest.raises(BundleError, match=f"schema: got 99, expected {SCHEMA}; build it again"):
        load(copied)


def test_launchers_of_another_platform(copied):
    rewrite(copied, lambda m: m.update(launchers={"win32-arm64": "launchers.win32-arm64.so"}))
    with pytest.raises(BundleError, match="launchers: got those of win32-arm64, expected linux-"):
        load(copied, backend="null").mhc_post.kernel("mhc_post__bf16_N4_D64")


@pytest.mark.parametrize("suffix", [".so", ".cu", ".cubin"])
def test_a_damaged_file_is_refused_before_use(copied, suffix):
    victims = [p for p in copied.rglob(f"*{suffix}") if "post" in p.name or suffix == ".so"]
    for path in victims:
        path.write_bytes(path.read_bytes()[:-1])
    opened = Bundle(copied)
    with pytest.raises(BundleError, match=re.escape(suffix) + r": got sha256"):
        opened.read(str(victims[0].relative_to(copied)))


def test_a_cut_off_cuda_text_stops_the_virtual_gpu(copied, post_inputs):
    path = copied / "cuda" / "mhc_post__bf16_N4_D64.sm_80.cu"
    path.write_text(path.read_text()[:-2])
    library = load(copied, backend="virtual")
    with pytest.raises(BundleError, match=r"\.cu: got sha256"):
        library.mhc_post(*post_inputs(3))


def test_a_file_the_manifest_does_not_list(bundle):
    with pytest.raises(BundleError, match=r"got \.\./secret, expected one of the manifest's"):
        Bundle(bundle).read("../secret")


@pytest.mark.parametrize(
    ("capability", "arch"), [(80, "sm_80"), (86, "sm_80"), (89, "sm_80"), (90, "sm_90a")]
)
def test_the_arch_a_device_runs(bundle, capability, arch):
    assert Bundle(bundle).arch_for(capability) == (arch, "cubin")


@pytest.mark.parametrize(
    ("capability", "expected"),
    [(86, ("sm_80", "cubin")), (90, ("sm_90a", "cubin")), (103, ("sm_80", "ptx"))],
)
def test_ptx_serves_devices_newer_than_all_code(copied, capability, expected):
    rewrite(copied, lambda m: m["archs"]["sm_80"].update(ptx=[8, 0]))
    assert Bundle(copied).arch_for(capability) == expected
    with pytest.raises(BundleError, match=r"expected code for a device of compute capability 7\.5"):
        Bundle(copied).arch_for(75)


@pytest.mark.parametrize(("capability", "build"), [(100, "sm_100a"), (120, "sm_120a")])
def test_a_device_nothing_runs_on(bundle, capability, build):
    words = f"got code for sm_80, sm_90a, expected code for .* run: tileproof build --arch {build}"
    with pytest.raises(BundleError, match=words):
        Bundle(bundle).arch_for(capability)


@pytest.mark.parametrize(
    ("capability", "advice"),
    [(103, "run: tileproof build --arch sm_80 --ptx -o"), (75, "none can be built")],
)
def test_a_device_no_architecture_is_for(bundle, capability, advice):
    with pytest.raises(BundleError, match=advice):
        Bundle(bundle).arch_for(capability)


def test_an_arch_the_bundle_lacks(bundle):
    with pytest.raises(BundleError, match="got sm_120a, expected one of sm_80, sm_90a; run: tile"):
        load(bundle, backend="virtual", arch="sm_120a")


def test_an_unknown_backend(bundle):
    with pytest.raises(BundleError, match="got 'gpu', expected one of auto, cuda, virtual, null, "):
        load(bundle, backend="gpu")


def test_resources_are_in_the_manifest(bundle):
    facts = read_manifest(bundle)["specializations"]["mhc_post__bf16_N4_D64"]["archs"]["sm_80"]
    used = facts["resources"][0]
    assert used["spill_stores"] == used["spill_loads"] == 0
    assert 16 <= used["registers"] <= 255
    assert used["threads"] == 128
    assert used["sass"]["LDG"] > 0
    assert used["sass"]["STG"] > 0
    assert used["instructions"] > sum(used["sass"].values()) / 2
    assert facts["proofs"] is None


def places(value, path=()):
    """Every leaf of a manifest by its path."""
    if isinstance(value, (dict, list)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*path, key))
    else:
        yield path, value


def test_every_field_of_the_manifest_and_every_byte_of_a_file_counts(copied):
    """One flipped bit in each value of the manifest, and in each file: one sentence each."""
    path = copied / "manifest.json"
    text = path.read_bytes()
    leaves = [(p, v) for p, v in places(json.loads(text)) if v not in (None, "")]
    assert len(leaves) > 300
    at = 0
    for _, value in leaves:
        at = text.index(json.dumps(value).encode(), at)
        for change in (1, 64):
            flipped = bytearray(text)
            flipped[at + (1 if isinstance(value, str) else 0)] ^= change
            path.write_bytes(flipped)
            with pytest.raises(BundleError, match=r"manifest.json: got sha256 \w+… over"):
                read_manifest(copied)
    path.write_bytes(text)
    opened = Bundle(copied)
    for name in opened.manifest["files"]:
        data = bytearray((copied / name).read_bytes())
        for place in (0, len(data) // 2, len(data) - 1):
            data[place] ^= 1
            (copied / name).write_bytes(data)
            with pytest.raises(BundleError, match=re.escape(name) + r": got sha256 \w+… over"):
                opened.read(name)
            data[place] ^= 1
        (copied / name).write_bytes(data)
        assert opened.read(name) == bytes(data)
