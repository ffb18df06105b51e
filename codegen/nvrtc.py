"""CUDA text → PTX by NVRTC, in this process.

It is nvcc's device compiler without the passes for the host, and gives nvcc's PTX (a test compares)
but for what :func:`reachable` drops. Most of the time a kernel takes goes into parsing TileLang's
headers, so a process that compiles many keeps them precompiled, one architecture at a time.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import re
import threading
from collections.abc import Sequence
from pathlib import Path

from tileproof.runtime.cache import cache_dir, until_exit

from .toolchain import ToolchainError, cuda_includes, cuda_tool, nvrtc_library

# What every kernel includes, or every second (mma.h). The first is TileLang's for NVRTC and has to
# stand before all others. wgmma.h, for a few kernels, would triple what all have to read.
_HEADERS = ("nvrtc_std.h", "common.h", "reduce.h", "debug.h", "instruction/mma.h")
# How far CCCL unrolls its metaprograms. For NVRTC it takes 16, and its preprocessor then needs a
# second and 200 MB for one header that no kernel uses.
_UNROLL = "-D_CCCL_META_UNROLL_LIMIT=1"


def to_ptx(cuda: str, arch: str, options: Sequence[str]) -> str:
    """PTX of a CUDA text for `arch`, of the kernels in it and what they use.

    `options` are NVRTC's; the architecture and include folders are added. Raises ToolchainError
    with the compiler's first error, or if NVRTC is not installed.
    """
    lines = [f"#include <tl_templates/cuda/{name}>" for name in _HEADERS]
    lines.append("#include <cuda_device_runtime_api.h>")  # nvcc has it included
    source = "\n".join([*lines, "#pragma nv_hdrstop", '#line 1 "kernel.cu"', cuda])
    nvidia = cuda_tool("nvcc").parents[1] / "include"
    folders = [*cuda_includes(), nvidia, nvidia / "cccl"]
    target = f"--gpu-architecture={arch.replace('sm_', 'compute_')}"
    folder_options = [f"-I{folder}" for folder in folders]
    every = [target, "-default-device", "-w", _UNROLL, *options, *folder_options]
    with _LOCK:
        precompiled = _precompiled.options(tuple(every))
        ptx, log = _compile(source, [*every, *precompiled])
        if ptx is None and precompiled:  # there may be no room for the precompiled headers
            _precompiled.give_up()
            ptx, log = _compile(source, every)
    if ptx is None:
        errors = [line for line in log.splitlines() if "error" in line.lower()]
        raise ToolchainError(f"nvrtc failed: {(errors or [log.strip()])[0].strip()}")
    return reachable(ptx)


class _Precompiled:
    """The headers' file, made when the same options come twice in a row: a single kernel is
    faster without. It is named as the cache's unfinished files are, for the doctor to find it if
    this process is killed."""

    def __init__(self) -> None:
        self.last: tuple[str, ...] = ()
        self.file: Path | None = None
        self.usable = True

    def options(self, options: tuple[str, ...]) -> list[str]:
        if options != self.last:
            self.last = options
            self._drop()
            return []
        if not self.usable:
            return []
        if self.file is not None:
            return [f"--use-pch={self.file}"]
        self.file = until_exit(cache_dir("device") / "headers.pch")
        return [f"--create-pch={self.file}"]

    def give_up(self) -> None:
        self.usable = False
        self._drop()

    def _drop(self) -> None:
        if self.file is not None:
            self.file.unlink(missing_ok=True)
            self.file = None


_precompiled = _Precompiled()
_LOCK = threading.Lock()


def _compile(source: str, options: list[str]) -> tuple[str | None, str]:
    """The PTX, None if NVRTC refuses the source, and its log."""
    nvrtc = _library()
    program = ctypes.c_void_p()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None)
    try:
        words = (ctypes.c_char_p * len(options))(*(o.encode() for o in options))
        failed = nvrtc.nvrtcCompileProgram(program, len(options), words)
        log = _text(program, "ProgramLog")
        return (None if failed else _text(program, "PTX")), log
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _text(program: ctypes.c_void_p, what: str) -> str:
    size = ctypes.c_size_t()
    getattr(_library(), f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    data = ctypes.create_string_buffer(size.value)
    getattr(_library(), f"nvrtcGet{what}")(program, data)
    return data.value.decode()


@functools.cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(str(nvrtc_library()))


# A statement of PTX on the outermost level starts a line; what follows belongs to it.
_STATEMENT = re.compile(
    r"^(?=\.(?:visible|weak|extern|common|global|const|shared|entry|func)\b)", re.MULTILINE
)
_FUNCTION = re.compile(r"\.(?:entry|func)\s+(?:\([^)]*\)\s*)?([\w$]+)")
_VARIABLE = re.compile(r"\.(?:global|const|shared)\b[^;={]*?([\w$]+)\s*[\[=;]")
_WORD = re.compile(r"[\w$]+")


def reachable(ptx: str) -> str:
    """`ptx` without the functions and variables that none of its kernels reaches.

    NVRTC keeps all of a header's, for a program that might ask for them by name.
    """
    head, *statements = _STATEMENT.split(ptx)
    named: dict[str, list[str]] = {}
    kept: set[str] = set()
    left: list[str] = []
    names = []
    for statement in statements:
        found = _FUNCTION.search(statement) or _VARIABLE.search(statement)
        name = found[1] if found else ""
        names.append(name)
        named.setdefault(name, []).append(statement)
        if ".entry" in statement.partition("(")[0]:
            left.append(name)
    while left:
        name = left.pop()
        if name not in kept:
            kept.add(name)
            words = itertools.chain.from_iterable(map(_WORD.findall, named[name]))
            left.extend(named.keys() & set(words))
    return head + "".join(s for n, s in zip(names, statements, strict=True) if n in kept)
