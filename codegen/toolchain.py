"""The compilers a build calls, and where they are: NVIDIA's from PyPI, the host's C++ compiler.

An nvcc on the system is never picked up by accident: it may be of any version, and the resource
tables and cubins of a bundle are only comparable when one compiler made them.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Toolkit = Literal["pip", "system"]
_ADVICE = "install it with: pip install 'tileproof[build]'"


class ToolchainError(RuntimeError):
    """A tool the build needs is missing or failed; the words say which and what to do."""


def _pip_root() -> Path:
    """The folder of NVIDIA's CUDA 13 wheels. `nvidia` is a namespace that may span several."""
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        root = Path(folder) / "cu13"
        if (root / "bin" / "nvcc").is_file():
            return root
    raise ToolchainError(f"nvcc from PyPI (nvidia-cuda-nvcc) is not installed; {_ADVICE}")


def nvrtc_library() -> Path:
    """NVRTC from PyPI. Raises ToolchainError naming the package to install."""
    found = next((_pip_root() / "lib").glob("libnvrtc.so.*"), None)
    if found is None:
        raise ToolchainError(f"NVRTC from PyPI (nvidia-cuda-nvrtc) is not installed; {_ADVICE}")
    return found


def cuda_tool(name: str, toolkit: Toolkit = "pip") -> Path:
    """Path of ``nvcc`` or ``nvdisasm``. Raises ToolchainError naming the package to install."""
    if toolkit == "system":
        found = shutil.which(name)
        if found is None:
            raise ToolchainError(f"no {name} on PATH; leave out toolkit='system' to use PyPI's")
        return Path(found)
    path = _pip_root() / "bin" / name
    if not path.is_file():
        raise ToolchainError(f"{name} from PyPI (nvidia-cuda-{name}) is not installed; {_ADVICE}")
    return path


def cuda_includes() -> list[Path]:
    """Include folders of the CUDA text TileLang generates."""
    spec = importlib.util.find_spec("tilelang")
    if spec is None or spec.origin is None:
        raise ToolchainError(f"tilelang is not installed; {_ADVICE}")
    root = Path(spec.origin).parent
    return [root / "src", root / "3rdparty" / "cutlass" / "include"]


def cxx() -> Path:
    """The host C++ compiler. Raises ToolchainError saying how to install one."""
    for name in ("g++", "clang++"):
        if path := shutil.which(name):
            return Path(path)
    raise ToolchainError("no C++ compiler on PATH: install g++ (Debian/Ubuntu: apt install g++)")


@dataclass(frozen=True)
class Versions:
    """What a cached or shipped artefact depends on besides its source.

    `nvrtc` is None with the system's toolkit, where nvcc does its work.
    """

    tilelang: str
    nvcc: str
    nvrtc: str | None
    cxx: str
    tvm_ffi: str


@functools.cache
def versions(toolkit: Toolkit = "pip") -> Versions:
    """Versions of all tools. Raises ToolchainError for the first that is missing."""
    cuda_includes()
    nvcc = run([cuda_tool("nvcc", toolkit), "--version"], "nvcc").splitlines()
    release = next(line for line in nvcc if "release" in line)
    if toolkit == "pip":
        nvrtc_library()
    return Versions(
        tilelang=importlib.metadata.version("tilelang"),
        nvcc=release.rsplit("V", 1)[-1],
        nvrtc=importlib.metadata.version("nvidia-cuda-nvrtc") if toolkit == "pip" else None,
        cxx=run([cxx(), "--version"], "the C++ compiler").splitlines()[0],
        tvm_ffi=importlib.metadata.version("apache-tvm-ffi"),
    )


def run(command: Iterable[str | Path], what: str, cwd: Path | None = None) -> str:
    """Run a tool and return stdout and stderr. Raises ToolchainError with its first error line."""
    environment = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(
        [str(c) for c in command], capture_output=True, text=True, cwd=cwd, env=environment
    )
    output = done.stdout + done.stderr
    if done.returncode:
        lines = output.strip().splitlines() or [f"exit status {done.returncode}"]
        first = next((line for line in lines if "error" in line.lower()), lines[-1])
        raise ToolchainError(f"{what} failed: {first.strip()}")
    return output
