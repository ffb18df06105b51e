"""CUDA text → cubin and its resource table, cached by content."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tileproof.dsl import check
from tileproof.runtime.cache import atomic_write, cache_dir, locked

from . import nvrtc, sass
from .resources import FAMILIES, from_ptxas
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
    if not facts.exists():
        assemble(cuda, arch, contract_fma=contract_fma, toolkit=toolkit)
        disassemble([facts], arch, toolkit)
    return DeviceCode(_beside(facts, ".cubin").read_bytes(), json.loads(facts.read_text()))


def assemble(cuda: str, arch: str, *, contract_fma: bool, toolkit: Toolkit = "pip") -> None:
    """The first part of :func:`compile_cuda`: the cubin, and what ptxas said about it."""
    entry = cache_entry(cuda, arch, contract_fma=contract_fma, toolkit=toolkit)
    used = _beside(entry, ".ptxas.json")
    if used.exists():
        return
    with locked(used):
        if not used.exists():
            ptx = compile_ptx(cuda, arch, contract_fma=contract_fma, toolkit=toolkit)
            cubin, log = _assemble(ptx, flags(arch, contract_fma=contract_fma), toolkit)
            atomic_write(_beside(entry, ".cubin"), cubin)
            atomic_write(used, json.dumps(from_ptxas(log)))  # last: its presence means both


def disassemble(entries: Collection[Path], arch: str, toolkit: Toolkit = "pip") -> None:
    """The second part of :func:`compile_cuda`, for many cubins of one architecture: count their
    instructions. `entries` are those of :func:`cache_entry`."""
    cubins = [_beside(entry, ".cubin").read_bytes() for entry in entries]
    codes = [sass.code(cubin) for cubin in cubins]
    every = [piece for code in codes for piece in code.values()]
    found = iter(sass.disassemble(every, arch, toolkit))
    for entry, cubin, code in zip(entries, cubins, codes, strict=True):
        kernels = json.loads(_beside(entry, ".ptxas.json").read_text())
        instructions = {name: next(found) for name in code}
        for name, used in kernels.items():
            check(name in code, f"{name}: disassembly", got="no instructions", expected="its code")
            counts = sass.opcodes(instructions[name])
            used["instructions"] = sum(counts.values())
            used["sass"] = {family: counts[family] for family in FAMILIES if counts[family]}
            used["cubin_bytes"] = len(cubin)
            used["widths"] = dict(sorted(sass.widths(instructions[name]).items()))
        check(bool(kernels), "ptxas report", got="no kernel", expected="at least one")
        atomic_write(entry, json.dumps(kernels))


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


def _assemble(ptx: str, options: list[str], toolkit: Toolkit) -> tuple[bytes, str]:
    """The cubin, and ptxas' report."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "kernel.ptx").write_text(ptx)
        nvcc = cuda_tool("nvcc", toolkit)
        log = run([nvcc, "-cubin", "-Xptxas=-v", *options, "kernel.ptx"], "ptxas", folder)
        return (folder / "kernel.cubin").read_bytes(), log
