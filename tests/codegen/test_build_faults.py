"""Builds that are killed, that meet each other, or that find the disk full."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import pytest

from tileproof.codegen import build as building
from tileproof.codegen.build import build
from tileproof.codegen.bundle import write_bundle
from tileproof.codegen.toolchain import versions
from tileproof.dsl import get
from tileproof.runtime import BundleError
from tileproof.runtime.bundle import Bundle, read_manifest

SCRIPT = """
    import sys
    from tileproof.codegen.build import build
    from tileproof.dsl import get
    specs = [get("mhc/post").specialize(N=2, D=D) for D in (32, 64)]
    print("started", flush=True)
    build(specs, ["sm_80"], sys.argv[1], jobs=1)
"""


def start(out):
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(out)]
    return subprocess.Popen(
        command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )


def whole(bundle):
    opened = Bundle(bundle)
    return {name: opened.read(name) for name in opened.manifest["files"]}


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """What the build makes when nothing goes wrong."""
    specs = [get("mhc/post").specialize(N=2, D=D) for D in (32, 64)]
    return whole(build(specs, ["sm_80"], tmp_path_factory.mktemp("good") / "bundle", jobs=1))


KILLS = """
    import os, random, signal, sys, time
    import tilelang
    from tileproof.codegen.build import build
    from tileproof.dsl import get
    specs = [get("mhc/post").specialize(N=2, D=D) for D in (32, 64)]
    draw = random.Random(int(sys.argv[2]))
    killed = 0
    for _ in range(50):
        child = os.fork()
        if child == 0:
            build(specs, ["sm_80"], sys.argv[1], jobs=1)
            os._exit(0)
        # Most of the work is over after a few rounds; short delays keep meeting the rest.
        time.sleep(draw.choice((0.02, 0.2, 1.0)) * draw.random())
        os.kill(child, signal.SIGKILL)
        killed += os.waitpid(child, 0)[1] == signal.SIGKILL
    print(killed, "killed")
    build(specs, ["sm_80"], sys.argv[1], jobs=1)
"""


def test_kill_9_at_any_moment(tmp_path, own_cache, expected, seed):
    """Fifty kills at random moments of one build that goes on where it was; then it is whole."""
    out = tmp_path / "bundles" / "b"
    out.parent.mkdir()
    command = [sys.executable, "-c", textwrap.dedent(KILLS), str(out), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) > 10, "the delays meet no build at work"
    assert whole(out) == expected
    assert list(out.parent.iterdir()) == [out]


def test_two_builds_of_one_bundle_at_once(tmp_path, own_cache, expected):
    processes = [start(tmp_path / "bundle") for _ in range(2)]
    for process in processes:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    assert whole(tmp_path / "bundle") == expected
    assert not list(tmp_path.glob(".bundle*"))


def test_builds_that_take_turns_replace_each_other_whole(tmp_path, monkeypatch):
    """Many writers of one folder. A reader never finds it missing, and refuses a manifest that was
    exchanged between reading it and reading its hash."""
    units = []
    monkeypatch.setattr(building, "write_bundle", lambda found, *_: units.append(found))
    for D in (32, 64):
        building.build([get("mhc/post").specialize(N=2, D=D)], ["sm_80"], tmp_path / "none")
    out, tools = tmp_path / "bundle", versions()
    written = [write_bundle(found, out, tools) and whole(out) for found in units]

    def write(i):
        write_bundle(units[i % 2], out, tools)

    with ThreadPoolExecutor(4) as pool:
        writing = [pool.submit(write, i) for i in range(24)]
        while not all(future.done() for future in writing):
            try:
                read_manifest(out)
            except BundleError as error:
                assert "got sha256" in str(error)  # not: got no such file
    assert all(future.exception() is None for future in writing)
    assert whole(out) in written
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def mounted(folder, size):
    """A small file system in memory; None where we may not mount."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.parametrize("size", ["16k", "64k"])
def test_a_full_disk_is_said_and_leaves_nothing(tmp_path, expected, size):
    disk = tmp_path / "disk"
    if not mounted(disk, size):
        pytest.skip("mounting a small file system takes root")
    try:
        process = start(disk / "bundle")
        _, errors = process.communicate()
        assert process.returncode == 1
        assert "No space left on device" in errors.splitlines()[-1]
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)
