"""What this machine can do: each tool and device, whether it works, and what mends it."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tileproof.dsl import ARCHS
from tileproof.runtime.cache import cache_dir

from . import nvrtc
from .toolchain import ToolchainError, cuda_tool, cxx, nvrtc_library, run

# What a machine may be wanted for: bundles on a GPU or on the virtual one, making them, and so on.
USES = ("run", "gpu", "virtual", "build", "prove", "patch", "plot", "bench")
_BASE, _BUILD = "pip install tileproof", "pip install 'tileproof[build]'"
_REINSTALL = "pip install --force-reinstall 'tileproof[build]'"
_EMPTY = 'extern "C" __global__ void kernel() {}\n'
# distribution, what needs it, what it is for, how to install it
_PACKAGES = (
    ("torch", ("run",), "load and run bundles", _BASE),
    ("apache-tvm-ffi", ("run",), "load and run bundles", _BASE),
    ("tilelang", ("build", "prove"), "compile kernels", _BUILD),
    ("z3-solver", ("prove",), "prove kernels", "pip install 'tileproof[verify]'"),
    ("transformers", ("patch",), "patch models", "pip install 'tileproof[model]'"),
    ("matplotlib", ("plot",), "draw the roofline model", "pip install 'tileproof[plot]'"),
    ("triton", ("bench",), "the peers of `bench`", "pip install 'tileproof[bench]'"),
)
_LITTLE = 2 << 30  # bytes: a cold build of the whole library writes less than half of it


@dataclass(frozen=True)
class Finding:
    """One line of the report. `detail` is a version or what is missing, `fix` the command that
    mends it, `needed` the uses that cannot be without it: none if it is only good to know."""

    item: str
    ok: bool
    detail: str
    fix: str = ""
    needed: tuple[str, ...] = ()


def examine() -> list[Finding]:
    """Every finding for this machine. Asks no network; compiles two empty programs in a folder of
    their own and leaves nothing behind."""
    return [
        _python(),
        *(_package(*row) for row in _PACKAGES),
        *_toolkit(),
        _compiler(),
        *_cache(),
        *_devices(),
    ]


def able(findings: Iterable[Finding]) -> dict[str, bool]:
    """Which of :data:`USES` this machine is good for."""
    missing = {use for f in findings if not f.ok for use in f.needed}
    return {use: use not in missing for use in USES}


def _python() -> Finding:
    new_enough = sys.version_info >= (3, 10)
    return Finding("python", new_enough, platform.python_version(), "install Python 3.10+", USES)


def _package(name: str, needed: tuple[str, ...], purpose: str, fix: str) -> Finding:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, False, f"not installed ({purpose})", fix, needed)
    pin = _pinned(name)
    if pin is not None and pin != version:
        fix = f"pip install {name}=={pin}"
        return Finding(name, False, f"got {version}, expected {pin}", fix, needed)
    return Finding(name, True, f"{version} ({purpose})", fix, needed)


def _pinned(name: str) -> str | None:
    """The one version of a package that tileproof's own metadata allows, None if it allows many."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for line in importlib.metadata.requires("tileproof") or ():
            if found := re.match(rf"{re.escape(name)}==([\w.]+)", line):
                return found[1]
    return None


def _toolkit() -> list[Finding]:
    """NVIDIA's compilers from PyPI, and one on the system that is left alone."""
    found = [_nvcc(), _nvrtc(), _tool("nvdisasm")]
    if system := shutil.which("nvcc"):
        found.append(Finding("nvcc (system)", True, f"{system}; not used, builds take PyPI's"))
    return found


def _tool(name: str) -> Finding:
    item = f"{name} (PyPI)"
    try:
        output = run([cuda_tool(name), "--version"], name)
    except ToolchainError as error:
        return Finding(item, False, str(error), _BUILD, ("build",))
    release = next(x for x in output.splitlines() if "release" in x)
    return Finding(item, True, release.partition("tools, ")[2] or release, _BUILD, ("build",))


def _nvcc() -> Finding:
    """Versions of packages say nothing of whether they fit each other: an empty kernel does."""
    found = _tool("nvcc")
    if not found.ok:
        return found
    try:
        with tempfile.TemporaryDirectory() as scratch:
            source = Path(scratch) / "kernel.cu"
            source.write_text(_EMPTY)
            run([cuda_tool("nvcc"), "-cubin", "-arch=sm_80", source.name], "nvcc", source.parent)
    except ToolchainError as error:
        return Finding(found.item, False, str(error), _REINSTALL, found.needed)
    return Finding(found.item, True, f"{found.detail}, compiles", _BUILD, found.needed)


def _nvrtc() -> Finding:
    item, needed = "NVRTC (PyPI)", ("build",)
    try:
        library = nvrtc_library()
    except ToolchainError as error:
        return Finding(item, False, str(error), _BUILD, needed)
    try:
        nvrtc.to_ptx(_EMPTY, "sm_80", [])
    except (ToolchainError, OSError) as error:
        return Finding(item, False, str(error), _REINSTALL, needed)
    return Finding(item, True, f"{library.name}, compiles", _BUILD, needed)


def _compiler() -> Finding:
    """The host's C++ compiler, on the smallest shared library."""
    item, needed = "C++ compiler", ("virtual", "build")
    try:
        version = run([cxx(), "--version"], "the C++ compiler").splitlines()[0]
        with tempfile.TemporaryDirectory() as scratch:
            source = Path(scratch) / "library.cpp"
            source.write_text('#include <cstdint>\nextern "C" int32_t one() { return 1; }\n')
            flags = ("-std=c++17", "-shared", "-fPIC", "-o", "library.so")
            run([cxx(), *flags, source.name], "the C++ compiler", source.parent)
    except ToolchainError as error:
        return Finding(item, False, str(error), "apt install g++", needed)
    return Finding(item, True, f"{version} (launchers, virtual GPU)", "apt install g++", needed)


def _cache() -> list[Finding]:
    """Where compiled things are kept: whether it can be written, and how full it is."""
    item, needed = "cache", ("virtual", "build")
    fix = "set TILEPROOF_CACHE to a folder you may write"
    try:
        folder = cache_dir()
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        return [Finding(item, False, str(error), fix, needed)]
    sizes = [entry.stat().st_size for entry in folder.rglob("*") if entry.is_file()]
    free = shutil.disk_usage(folder).free
    detail = f"{folder}: {len(sizes)} files, {sum(sizes) / 1e6:.0f} MB; {free / 1e9:.0f} GB free"
    found = [Finding(item, free > _LITTLE, detail, f"rm -r {folder}", ())]
    left = [p for p in folder.rglob(".*") if p.is_file() and _abandoned(p)]
    if left:
        words = f"{len(left)} unfinished files of processes that are gone"
        fix = f"find {folder} -name '.*' -type f -delete"
        found.append(Finding("cache leftovers", False, words, fix))
    return found


def _abandoned(path: Path) -> bool:
    """Whether a temporary file, ``.NAME.PID.RANDOM``, was made by a process that no longer runs."""
    parts = path.name.rsplit(".", 2)
    if len(parts) != 3 or not parts[1].isdigit():
        return False
    try:
        os.kill(int(parts[1]), 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return False


def _devices() -> list[Finding]:
    """The CUDA driver and its devices. Without one, kernels run on the virtual GPU."""
    item, needed = "CUDA driver", ("gpu",)
    fix = "without an NVIDIA GPU: load bundles with backend='virtual'"
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return [Finding(item, False, "no libcuda.so.1", fix, needed)]
    count, version = ctypes.c_int(), ctypes.c_int()
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return [Finding(item, False, "libcuda.so.1 finds no device", fix, needed)]
    cuda.cuDriverGetVersion(ctypes.byref(version))
    words = f"for CUDA {version.value // 1000}.{version.value % 1000 // 10}"
    devices = [_device(cuda, index) for index in range(count.value)]
    return [Finding(item, True, words, fix, needed), *devices]


def _device(cuda: ctypes.CDLL, index: int) -> Finding:
    name, major, minor = ctypes.create_string_buffer(128), ctypes.c_int(), ctypes.c_int()
    cuda.cuDeviceGetName(name, len(name), index)
    cuda.cuDeviceGetAttribute(ctypes.byref(major), 75, index)
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), 76, index)
    capability = (major.value, minor.value)
    detail = f"{name.value.decode()} (compute capability {major.value}.{minor.value})"
    fitting = [a.name for a in ARCHS.values() if capability in a.runs_on]
    if fitting:
        command = f"tileproof build --arch {fitting[-1]}"
        return Finding(f"GPU {index}", True, f"{detail}: {command}")
    known = ", ".join(f"{x}.{y}" for a in ARCHS.values() for x, y in a.runs_on)
    words = f"{detail}: got no code for it, expected one of {known}"
    return Finding(f"GPU {index}", False, words, "load bundles with backend='virtual'", ("gpu",))
