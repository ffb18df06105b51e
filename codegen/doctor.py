"""What this machine can do: each tool and device, whether it is there, and how to get it."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import platform
import sys
from dataclasses import dataclass

from .toolchain import ToolchainError, cuda_tool, cxx, run

_BUILD = "pip install 'tileproof[build]'"
_VERIFY = "pip install 'tileproof[verify]'"
# distribution, what it is for, how to install it
_PACKAGES = (
    ("torch", "load and run bundles", "pip install tileproof"),
    ("apache-tvm-ffi", "load and run bundles", "pip install tileproof"),
    ("tilelang", "compile kernels", _BUILD),
    ("z3-solver", "prove kernels", _VERIFY),
    ("transformers", "patch models", "pip install 'tileproof[model]'"),
)


@dataclass(frozen=True)
class Finding:
    """One line of the report. `detail` is a version or what is missing, `fix` what to run."""

    item: str
    ok: bool
    detail: str
    fix: str = ""


def examine() -> list[Finding]:
    """Every finding for this machine; asks no network and changes nothing."""
    python = platform.python_version()
    new_enough = sys.version_info >= (3, 10)
    found = [Finding("python", new_enough, python, "" if new_enough else "install Python 3.10+")]
    found += [_package(*row) for row in _PACKAGES]
    found += [_tool("nvcc"), _tool("nvdisasm"), _compiler(), *_devices()]
    return found


def _package(name: str, purpose: str, fix: str) -> Finding:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return Finding(name, True, f"{importlib.metadata.version(name)} ({purpose})")
    return Finding(name, False, f"not installed ({purpose})", fix)


def _tool(name: str) -> Finding:
    item = f"{name} (PyPI)"
    try:
        output = run([cuda_tool(name), "--version"], name)
    except ToolchainError as error:
        return Finding(item, False, str(error), _BUILD)
    return Finding(item, True, next(x for x in output.splitlines() if "release" in x))


def _compiler() -> Finding:
    try:
        version = run([cxx(), "--version"], "the C++ compiler").splitlines()[0]
    except ToolchainError as error:
        return Finding("C++ compiler", False, str(error), "apt install g++")
    return Finding("C++ compiler", True, f"{version} (launchers, virtual GPU)")


def _devices() -> list[Finding]:
    """The CUDA driver and its devices. Without one, kernels run on the virtual GPU."""
    fix = "nothing to do without an NVIDIA GPU: load bundles with backend='virtual'"
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return [Finding("CUDA driver", False, "no libcuda.so.1", fix)]
    count = ctypes.c_int()
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return [Finding("CUDA driver", False, "libcuda.so.1 finds no device", fix)]
    return [_device(cuda, index) for index in range(count.value)]


def _device(cuda: ctypes.CDLL, index: int) -> Finding:
    name, major, minor = ctypes.create_string_buffer(128), ctypes.c_int(), ctypes.c_int()
    cuda.cuDeviceGetName(name, len(name), index)
    cuda.cuDeviceGetAttribute(ctypes.byref(major), 75, index)
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), 76, index)
    detail = f"{name.value.decode()} (compute capability {major.value}.{minor.value})"
    return Finding(f"GPU {index}", True, detail)
