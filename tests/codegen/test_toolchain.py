"""Which compilers a build uses, and what it says when one is missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import subprocess

import pytest

from tileproof.codegen import device, toolchain
from tileproof.codegen.doctor import able, examine
from tileproof.codegen.toolchain import ToolchainError, cuda_tool

EMPTY = 'extern "C" __global__ void empty_kernel() {}\n'


@pytest.fixture
def broken_nvcc(tmp_path, monkeypatch):
    """An nvcc first on PATH that must not be run."""
    folder = tmp_path / "bin"
    folder.mkdir()
    path = folder / "nvcc"
    path.write_text("#!/bin/sh\necho 'error: the system nvcc ran'\nexit 1\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return path


@pytest.fixture
def no_wheels(monkeypatch):
    """A Python without NVIDIA's wheels and TileLang."""
    find = importlib.util.find_spec
    hidden = ("nvidia", "tilelang")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n in hidden else find(n, *a)
    )
    toolchain.versions.cache_clear()
    yield
    toolchain.versions.cache_clear()


def test_a_system_nvcc_is_ignored(broken_nvcc, own_cache):
    code = device.compile_cuda(EMPTY, "sm_80", contract_fma=True)
    assert code.cubin.startswith(b"\x7fELF")
    assert code.kernels["empty_kernel"]["instructions"] > 0


def test_a_system_nvcc_is_used_when_asked_for(broken_nvcc):
    assert cuda_tool("nvcc", "system") == broken_nvcc
    with pytest.raises(ToolchainError, match=r"^nvcc failed: error: the system nvcc ran$"):
        toolchain.versions("system")


def test_no_system_nvcc(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolchainError, match="no nvcc on PATH; leave out toolkit='system'"):
        cuda_tool("nvcc", "system")


def test_missing_wheels_are_named(no_wheels):
    with pytest.raises(ToolchainError, match=r"tilelang is not installed; .*'tileproof\[build\]'"):
        toolchain.versions()
    with pytest.raises(
        ToolchainError, match=r"nvidia-cuda-nvcc.* not installed; install it with: "
    ):
        cuda_tool("nvcc")
    findings = {f.item: f for f in examine()}
    assert not findings["nvcc (PyPI)"].ok and not findings["NVRTC (PyPI)"].ok
    assert "tileproof[build]" in findings["nvcc (PyPI)"].fix


def test_a_missing_compiler_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolchainError, match=r"no C\+\+ compiler on PATH: install g\+\+"):
        toolchain.cxx()
    assert [f.ok for f in examine() if f.item == "C++ compiler"] == [False]


def test_an_error_in_the_cuda_text_is_the_compilers_line(own_cache):
    with pytest.raises(ToolchainError, match=r"^nvrtc failed: kernel.cu\(1\): error: "):
        device.compile_cuda("this is not CUDA;", "sm_80", contract_fma=True)
    assert not list(own_cache.rglob("*.cubin"))


def test_doctor_finds_what_the_tests_need():
    findings = {f.item: f.ok for f in examine()}
    pypi = ("nvcc (PyPI)", "NVRTC (PyPI)", "nvdisasm (PyPI)")
    for item in ("python", "torch", "tilelang", *pypi, "C++ compiler"):
        assert findings[item]


def test_another_version_than_the_pinned_one_is_a_finding(monkeypatch):
    known = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda n: "0.1.14" if n == "tilelang" else known(n)
    )
    (found,) = [f for f in examine() if f.item == "tilelang"]
    assert (found.ok, found.detail) == (False, "got 0.1.14, expected 0.1.15")
    assert found.fix == "pip install tilelang==0.1.15"
    assert not able([found])["build"] and able([found])["run"]


def test_files_of_processes_that_died_are_found_in_the_cache(own_cache):
    def leftovers():
        return [f for f in examine() if f.item == "cache leftovers"]

    own_cache.mkdir(exist_ok=True)
    (own_cache / f".mine.{os.getpid()}.00aa").touch()
    assert not leftovers()
    process = subprocess.Popen(["true"])
    process.wait()
    (own_cache / f".dead.{process.pid}.00aa").touch()
    (found,) = leftovers()
    assert found.detail == "1 unfinished files of processes that are gone"
    subprocess.run(found.fix, shell=True, check=True)
    assert not leftovers()
