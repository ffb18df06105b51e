"""Wheels and repositories for Hugging Face's kernels: loaded with torch and TVM-FFI alone."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest
import torch

from tileproof.codegen.build import build
from tileproof.codegen.package import write_hf_kernels, write_wheel
from tileproof.dsl import ContractError, get
from tileproof.runtime import load
from tileproof.runtime.bundle import read_manifest


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    specs = [get("mhc/post").specialize(N=2, D=32)]
    return build(specs, ["sm_80", "sm_90a"], tmp_path_factory.mktemp("package") / "bundle")


@pytest.fixture(scope="module")
def case(bundle, tmp_path_factory):
    """A file with inputs and what the kernel makes of them."""
    inputs = [torch.randn(5, 2, 32), torch.randn(5, 32), torch.randn(5, 2), torch.randn(5, 2, 2)]
    inputs[:2] = [x.bfloat16() for x in inputs[:2]]
    path = tmp_path_factory.mktemp("case") / "case.pt"
    torch.save((inputs, load(bundle, backend="virtual").mhc_post(*inputs)), path)
    return path


def closure(*names):
    """Distributions that these need, themselves included."""
    found, left = {}, list(names)
    while left:
        name = re.split(r"[ ;\[<>=!~(]", left.pop())[0]
        try:
            dist = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # an extra, or for another platform
        if dist.name not in found:
            found[dist.name] = dist
            left += [r for r in dist.requires or () if "extra ==" not in r]
    return found


@pytest.fixture(scope="module")
def venv(tmp_path_factory):
    """A new environment with torch and apache-tvm-ffi, linked to those installed, and no more."""
    folder = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    site = next(folder.glob("lib/python*/site-packages"))
    for dist in closure("torch", "apache-tvm-ffi").values():
        for top in {f.parts[0] for f in dist.files or () if ".." not in f.parts}:
            source = Path(str(dist.locate_file(top)))
            if source.exists() and not (site / top).exists():
                (site / top).symlink_to(source)
    return folder


def python(venv, script, *arguments):
    start = [str(venv / "bin" / "python"), "-I", "-c", textwrap.dedent(script)]
    command = [*start, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=venv)


def test_a_new_environment_with_the_wheel_runs_an_op(bundle, venv, case, tmp_path):
    wheel = write_wheel(bundle, "my_kernels", tmp_path)
    site = next(venv.glob("lib/python*/site-packages"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    script = """
        import importlib.util, sys, torch
        for name in ("tileproof", "tilelang", "z3"):
            assert importlib.util.find_spec(name) is None, name
        import my_kernels
        inputs, expected = torch.load(sys.argv[1])
        library = my_kernels.load(backend="virtual")
        assert torch.equal(library.mhc_post(*inputs), expected)
        assert torch.equal(torch.ops.my_kernels.mhc_post(*inputs), expected)
        assert torch.equal(my_kernels.mhc_post(*inputs), expected)
        try:
            my_kernels.nothing
        except AttributeError as error:
            print(error)
        try:
            library.mhc_post(inputs[0][0], *inputs[1:])
        except ValueError as error:
            print(error)
    """
    done = python(venv, script, case)
    assert done.stdout.splitlines() == [
        "op: got 'nothing', expected one of mhc/post",
        "mhc/post: x.ndim: got 2, expected 3 [M, N, D]",
    ], done.stderr


def test_the_wheel_says_where_it_runs(bundle, tmp_path):
    wheel = write_wheel(bundle, "my_kernels", tmp_path)
    name = re.fullmatch(r"my_kernels-[\d.]+-py3-none-manylinux_2_(\d+)_x86_64\.whl", wheel.name)
    assert name
    library = read_manifest(bundle)["launchers"]["linux-x86_64"]
    asked = re.findall(rb"GLIBC_2\.(\d+)", (bundle / library).read_bytes())
    assert int(name[1]) >= max(map(int, asked))
    with zipfile.ZipFile(wheel) as archive:
        info = next(n for n in archive.namelist() if n.endswith("/METADATA"))
        text = archive.read(info).decode()
        assert archive.testzip() is None
        listed = archive.read(info.replace("METADATA", "RECORD")).decode().splitlines()
        assert len(listed) == len(archive.namelist())
    assert re.findall("Requires-Dist: (.*)", text) == [
        "torch>=2.7",
        "apache-tvm-ffi>=0.1.12,<0.1.13",
    ]
    again = write_wheel(bundle, "my_kernels", tmp_path / "again")
    assert again.read_bytes() == wheel.read_bytes()


APART = Path(sys.prefix, "apart")


# Not in the environment itself: transformers takes kernels from the network where it finds it.
@pytest.mark.skipif(not (APART / "kernels").is_dir(), reason="`make venv` puts kernels there")
def test_hugging_faces_kernels_loads_it(bundle, case, tmp_path):
    """By the library itself, from a local folder, in a process of its own."""
    write_hf_kernels(bundle, "my_kernels", tmp_path)
    script = """
        import sys, torch
        from pathlib import Path
        from kernels import get_local_kernel
        module = get_local_kernel(Path(sys.argv[1]), backend="cpu")
        inputs, expected = torch.load(sys.argv[2])
        assert torch.equal(module.load(backend="virtual").mhc_post(*inputs), expected)
        assert torch.equal(module.mhc_post(*inputs), expected)
        print(module.__name__.startswith("_my_kernels_cpu_"))
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path), str(case)]
    environment = os.environ | {"PYTHONPATH": str(APART), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.stdout == "True\n", done.stderr


def test_the_repository_has_a_variant_with_cubins_and_one_without(bundle, tmp_path):
    cuda, cpu = write_hf_kernels(bundle, "my_kernels", tmp_path)
    assert re.fullmatch(r"tvm-ffi01-cu\d\d0-x86_64-linux", cuda.name)
    assert cpu.name == "tvm-ffi01-cpu-x86_64-linux"
    assert len(list(cuda.rglob("*.cubin"))) == 2
    assert not list(cpu.rglob("*.cubin"))
    assert '"9.0a"' in (cuda / "metadata.json").read_text()


def test_names_that_cannot_be_imported_are_refused(bundle, tmp_path):
    with pytest.raises(ContractError, match="name of the wheel: got 'my-kernels', expected an id"):
        write_wheel(bundle, "my-kernels", tmp_path)
    assert not list(tmp_path.iterdir())
