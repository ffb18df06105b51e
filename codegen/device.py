"""CUDA text → cubin and its resource table, cached by content."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tileproof.dsl import check
from tileproof.runtime.cache import atomic_write, cache_dir, locked

from . import nvrtc
from .resources import FAMILIES, from_ptxas, from_sass, widths
from .toolchain import Toolkit, cuda_includes, cuda_tool, run, versions

_PATH_HASH = re.compile(r"_[0-9a-f]{8}_9_kernel_cu_[0-9a-f]{8}")

# Bumped when the cached facts change shape; PTX and cubins stay.
_FORMAT = "2"


@dataclass(frozen=True)
class DeviceCode:
    """A compiled CUDA text: the cubin's bytes and facts per kernel as in ``Resources``."""

    cubin: bytes
    kernels: dict[str, dict[str, Any]]


def dialect(*, contract_fma: bool) -> list[str]:
    """How nvcc and NVRTC read CUDA text. Fast-math is never among it."""
    # PyPI's torch for CUDA brings older runtime headers into the folder nvcc's lie in. CCCL refuses
    # the pair; the code made of them is the same.
    mixed = "-DCCCL_DISABLE_CTK_COMPATIBILITY_CHECK"
    return ["-std=c++17", mixed, f"-fmad={'true' if contract_fma else 'false'}"]


def flags(arch: str, *, contract_fma: bool) -> list[str]:
    """nvcc's flags, for PTX and for the cubin alike."""
    seed = "-frandom-seed=tileproof"
    return ["-O3", *dialect(contract_fma=contract_fma), f"-arch={arch}", seed]


def cache_entry(cuda: str, arch: str, *, contract_fma: bool, toolkit: Toolkit = "pip") -> Path:
    """Where the facts of a compiled text are kept; the cubin lies beside them. May not exist."""
    tools = versions(toolkit)
    options = flags(arch, contract_fma=contract_fma)
    parts = ["2", cuda, tools.nvcc, str(tools.nvrtc), tools.tilelang, toolkit, *options]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    return cache_dir("device", key[:2]) / f"{key}.{_FORMAT}.json"


def _beside(facts: Path, suffix: str) -> Path:
    return facts.with_name(facts.name.partition(".")[0] + suffix)


def compile_cuda(
    cuda: str, arch: str, *, contract_fma: bool, toolkit: Toolkit = "pip"
) -> DeviceCode:
    """Compile `cuda` for `arch`, or take it from the cache.

    Raises ToolchainError when nvcc is missing or refuses the text.
    """
    facts = cache_entry(cuda, arch, contract_fma=contract_fma, toolkit=toolkit)
    cubin = _beside(facts, ".cubin")
    if not facts.exists():
        with locked(facts):
            if not facts.exists():
                ptx = compile_ptx(cuda, arch, contract_fma=contract_fma, toolkit=toolkit)
                code = _compile(ptx, flags(arch, contract_fma=contract_fma), toolkit)
                atomic_write(cubin, code.cubin)
                atomic_write(facts, json.dumps(code.kernels))  # last: its presence means both
    return DeviceCode(cubin.read_bytes(), json.loads(facts.read_text()))


def compile_ptx(cuda: str, arch: str, *, contract_fma: bool, toolkit: Toolkit = "pip") -> str:
    """The PTX that a build hands to ptxas, from the cache where it can be.

    Raises ToolchainError when nvcc is missing or refuses the text.
    """
    entry = cache_entry(cuda, arch, contract_fma=contract_fma, toolkit=toolkit)
    path = _beside(entry, ".ptx")
    if not path.exists():
        with locked(path):
            if not path.exists():
                text = to_ptx(cuda, arch, contract_fma=contract_fma, toolkit=toolkit)
                atomic_write(path, text)
    return path.read_text()


def to_ptx(
    cuda: str, arch: str, *, contract_fma: bool, lines: bool = False, toolkit: Toolkit = "pip"
) -> str:
    """PTX of a CUDA text past the cache, with line numbers if `lines`.

    Raises as :func:`compile_ptx`.
    """
    numbers = ["-lineinfo"] if lines else []
    if toolkit == "pip":
        return nvrtc.to_ptx(cuda, arch, [*dialect(contract_fma=contract_fma), *numbers])
    options = [*flags(arch, contract_fma=contract_fma), *numbers]
    includes = [f"-I{path}" for path in cuda_includes()]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "kernel.cu").write_text(cuda)
        nvcc = cuda_tool("nvcc", toolkit)
        run([nvcc, "-ptx", *options, *includes, "kernel.cu"], "nvcc", folder)
        # Names of file-local objects carry a hash of the source's path; the same text shall give
        # the same bytes wherever it is compiled.
        ptx = _PATH_HASH.sub("_kernel_cu_", (folder / "kernel.ptx").read_text())
        return nvrtc.reachable(ptx)


def _compile(ptx: str, options: list[str], toolkit: Toolkit) -> DeviceCode:
    nvcc = cuda_tool("nvcc", toolkit)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "kernel.ptx").write_text(ptx)
        log = run([nvcc, "-cubin", "-Xptxas=-v", *options, "kernel.ptx"], "ptxas", folder)
        disassembly = run(
            [cuda_tool("nvdisasm", toolkit), "-ndf", "-c", "kernel.cubin"], "nvdisasm", folder
        )
        cubin = (folder / "kernel.cubin").read_bytes()
    sass, wide = from_sass(disassembly), widths(disassembly)
    kernels = {}
    for name, used in from_ptxas(log).items():
        check(name in sass, f"{name}: disassembly", got="no instructions", expected="its code")
        counts = sass[name]
        kernels[name] = {
            **used,
            "instructions": sum(counts.values()),
            "sass": {family: counts[family] for family in FAMILIES if counts[family]},
            "cubin_bytes": len(cubin),
            "widths": dict(sorted(wide.get(name, {}).items())),
        }
    check(bool(kernels), "ptxas report", got="no kernel", expected="at least one")
    return DeviceCode(cubin, kernels)
