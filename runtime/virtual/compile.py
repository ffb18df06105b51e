"""Turns CUDA text into a shared object the virtual GPU runs, with the host's C++ compiler."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ..cache import (  # noqa: TID252 - the runtime may be a part of another package
    atomic_write,
    cache_dir,
    locked,
    replacing,
)
from .batching import batched

_HERE = Path(__file__).parent
_INCLUDE = _HERE / "include"
_CSRC = _HERE / "csrc"
_DRIVER_ABI = _HERE.parent / "csrc"
_INCLUDES = [f"-I{_INCLUDE}", f"-I{_DRIVER_ABI}"]
_KEPT_HEADERS = 12  # precompiled; 25 MB each

# No contraction and no fast-math: the same bits on every machine. GCC 12's vectorizer contracts all
# the same: products below a difference and a sum side by side become one vfmaddsub. Generated code
# reads one local array through many vector types, which strict aliasing forbids.
_FLAGS = [
    "-std=c++17",
    "-O2",
    "-fPIC",
    "-ffp-contract=off",
    "-fno-tree-vectorize",
    "-fno-strict-aliasing",
    "-fwrapv",
    "-fsigned-char",
    "-fstack-clash-protection",
    "-fvisibility=hidden",
    "-fno-extern-tls-init",
    "-Wno-attributes",
    "-Wno-psabi",
    "-Wno-unknown-pragmas",
    "-Werror=deprecated-declarations",  # vgpu/arch.h
]
# Every load and store of the kernel announces itself; see vgpu/instrumentation.h.
_CHECKED_FLAGS = [
    "-fsanitize=thread",
    "--param=tsan-distinguish-volatile=1",
    "-fsanitize=bounds,alignment,integer-divide-by-zero",
    # An access of the text stays one access: vectors whole, scalars apart, as counters need it.
    "-fno-tree-sra",
    "-fno-tree-loop-distribute-patterns",
    "-DVGPU_CHECKED",
    "-g1",
    "-fno-omit-frame-pointer",
]
# Errors and accesses are placed in the kernel's text by the frames from the library back to it.
_LIBRARY_FLAGS = ["-fno-omit-frame-pointer"]


class CompileError(RuntimeError):
    """The CUDA text did not compile: it uses something the virtual GPU does not model."""


@dataclass(frozen=True)
class Signature:
    """What a kernel's C declaration says.

    parameters: (type, name) in order, the type as written without `__restrict__`.
    dynamic_shared: (element type, name) of its `extern __shared__` array, None without one.
    """

    name: str
    parameters: tuple[tuple[str, str], ...]
    dynamic_shared: tuple[str, str] | None


_KERNEL = re.compile(
    r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s+)?(\w+)\s*'
    r"\(([^)]*)\)\s*\{"
)
_DYNAMIC_SHARED = re.compile(
    r"extern\s+__shared__\s+(?:__align__\(\d+\)\s+)?(\w[\w:]*(?:\s+\w+)*?)\s+(\w+)\s*\[\s*\]"
)


def signatures(cuda_text: str) -> dict[str, Signature]:
    """The kernels defined in `cuda_text`, by name.

    Raises ValueError if a kernel declares two dynamic shared arrays: they would be one memory.
    """
    found = {}
    kernels = list(_KERNEL.finditer(cuda_text))
    for kernel, following in zip(kernels, [*kernels[1:], None], strict=True):
        body = cuda_text[kernel.end() : following.start() if following else None]
        shared = sorted(set(_DYNAMIC_SHARED.findall(body)))
        if len(shared) > 1:
            names = ", ".join(name for _, name in shared)
            raise ValueError(
                f"kernel {kernel[1]} declares several dynamic shared arrays ({names}), expected one"
            )
        parameters = []
        for text in filter(None, map(str.strip, kernel[2].split(","))):
            name = re.split(r"\W", text)[-1]
            declared = text.removesuffix(name).replace("__restrict__", "")
            parameters.append((" ".join(declared.split()), name))
        found[kernel[1]] = Signature(kernel[1], tuple(parameters), (shared or [None])[0])
    return found


@functools.cache
def compiler() -> tuple[str, str]:
    """Path and version line of g++. Raises FileNotFoundError in one sentence if there is none."""
    if path := shutil.which("g++"):
        version = subprocess.check_output([path, "--version"], text=True)
        return path, version.splitlines()[0]
    raise FileNotFoundError(
        "the virtual GPU needs a C++ compiler to run kernels: install g++ 11 or newer"
        " (Debian/Ubuntu: apt install g++)"
    )


def use_portable_build() -> None:
    """From now on builds here what machines other than x86-64 build: no assembly, no intrinsics.

    Fibers switch by `swapcontext` and products are made one by one: several times slower, the same
    bits. For a whole process; raises RuntimeError once libvgpu is built, as both must agree.
    """
    global _portable
    if build_library.cache_info().currsize and not _portable:
        raise RuntimeError("the portable build must be chosen before the virtual GPU's first use")
    _portable = True
    _machine_flags.cache_clear()


_portable = False


@functools.cache
def _machine_flags() -> tuple[str, ...]:
    if _portable:
        return ("-DVGPU_PORTABLE",)
    if platform.machine() == "aarch64":
        # With descriptors, its default, the loader is not told where a thread's shared memory lies.
        return ("-mtls-dialect=trad",)
    if platform.machine() != "x86_64":
        return ()
    base = ("-mno-red-zone",)  # switching fibers pushes onto the stack in the middle of a function
    # AVX2 and F16C make matrix instructions several times faster and change no result.
    try:
        cpu = Path("/proc/cpuinfo").read_text()
    except OSError:
        return base
    flags = re.search(r"^flags\s*:(.*)$", cpu, re.M)
    if flags and {"avx2", "f16c", "bmi2", "fma"} <= set(flags[1].split()):
        return (*base, "-march=x86-64-v3")
    return base


@functools.cache
def _sources_digest() -> str:
    digest = hashlib.sha256()
    files = [*_INCLUDE.rglob("*"), *_CSRC.rglob("*"), _DRIVER_ABI / "driver.h"]
    files.append(_HERE / "batching.py")
    for path in sorted(p for p in files if p.is_file()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _compile(sources: Sequence[Path], output: Path, flags: Sequence[str]) -> None:
    """Compiles and links `sources` into the shared object `output`.

    In two steps: linking with -fsanitize would bring in the sanitizer's own runtime.
    """
    with (
        replacing(output) as temporary,
        tempfile.TemporaryDirectory(dir=output.parent) as scratch,
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        objects = [Path(scratch) / f"{source.stem}.o" for source in sources]
        compiled = [
            pool.submit(_run, [*flags, *_INCLUDES, "-c", str(source), "-o", str(target)], source)
            for source, target in zip(sources, objects, strict=True)
        ]
        for job in compiled:
            job.result()
        _run(["-shared", *map(str, objects), "-pthread", "-ldl", "-o", str(temporary)], output)


def _flags(checked: bool = False) -> list[str]:
    return [*_FLAGS, *_machine_flags(), *(_CHECKED_FLAGS if checked else ())]


def _arch_flags(arch: str | None) -> list[str]:
    """What vgpu/arch.h is told of the architecture."""
    if arch is None:
        return []
    if not (match := re.fullmatch(r"sm_(\d+)(a?)", arch)):
        raise ValueError(f"architecture: got {arch!r}, expected one like 'sm_80' or 'sm_90a'")
    number, specific = match[1], int(bool(match[2]))
    return [
        f"-DVGPU_ARCH={number}",
        f"-DVGPU_ARCH_SPECIFIC={specific}",
        f'-DVGPU_ARCH_NAME="{arch}"',
    ]


def _precompiled(flags: Sequence[str]) -> Path:
    """A folder for the front of the include path: what every kernel includes, parsed once.

    Parsing is half the time of building a kernel. A compiler that finds the folder gone or cannot
    use it reads the headers themselves.
    """
    header = _INCLUDE / "vgpu" / "kernel_main.h"
    folder = cache_dir("virtual", "headers", _key("headers", *flags))
    output = folder / "vgpu" / f"{header.name}.gch"
    output.parent.mkdir(exist_ok=True)
    os.utime(folder)  # the folders used last stay
    if not output.exists():
        with locked(output):
            if not output.exists():
                with replacing(output) as temporary:
                    language = ["-x", "c++-header", str(header), "-o", str(temporary)]
                    _run([*flags, *_INCLUDES, *language], header)
        used = sorted(folder.parent.iterdir(), key=lambda path: path.stat().st_mtime)
        for old in used[:-_KEPT_HEADERS]:
            shutil.rmtree(old, ignore_errors=True)
    return folder


def _run(arguments: Sequence[str], subject: Path) -> None:
    done = subprocess.run([compiler()[0], *arguments], capture_output=True, text=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "error" in line.lower()]
        first = errors[0] if errors else done.stderr.strip()
        raise CompileError(f"the virtual GPU cannot build {subject.name}: {first}\n{done.stderr}")


def _key(*parts: str) -> str:
    text = "\0".join([*parts, _sources_digest(), compiler()[1], *_flags(checked=True)])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _translation_unit(included: str, kernels: Sequence[Signature]) -> str:
    """The file around the CUDA text: shared memory before it, the table after it."""
    arrays = sorted({k.dynamic_shared for k in kernels if k.dynamic_shared})
    lines = ['#include "vgpu/kernel_main.h"']
    for element, name in arrays:
        lines.append(
            f"thread_local __attribute__((aligned(1024))) {element} "
            f"{name}[vgpu::kSharedCapacity / sizeof({element})];"
        )
    lines.append(included)
    lines.append("static const vgpu::Kernel vgpu_kernels[] = {")
    for kernel in kernels:
        shared = "nullptr"
        if kernel.dynamic_shared:
            shared = f"[]() VGPU_LEAF -> void* {{ return ::{kernel.dynamic_shared[1]}; }}"
        lines.append(f"    VGPU_KERNEL({kernel.name}, ({shared})),")
    lines.append("};")
    lines.append(
        "VGPU_API const vgpu::Module vgpu_module = {vgpu::kModuleAbi, vgpu::kChecked, "
        f"vgpu_kernels, {len(kernels)}, vgpu::touch_shared, "
        "__start_vgpu_kernels, __stop_vgpu_kernels};"
    )
    return "\n".join(lines) + "\n"


def build(
    cuda_text: str, kernels: Sequence[str], *, checked: bool, arch: str | None = None
) -> Path:
    """Compiles CUDA text into a shared object for `driver.h`'s module_load, cached by content.

    kernels: names of the `extern "C" __global__` functions to export, at least one.
    checked: instrument every access (OOB, const, alignment), several times slower.
    arch: what the text was generated for, such as "sm_90a"; None accepts the helpers of all.

    Raises KeyError for a kernel the text lacks, CompileError for a helper that is not modelled or
    that `arch` lacks, ValueError for a malformed `arch`, FileNotFoundError without a C++ compiler.
    """
    known = signatures(cuda_text)
    for name in kernels:
        if name not in known:
            raise KeyError(f"no kernel {name} in the CUDA text, it defines {', '.join(known)}")
    flags = [*_flags(checked), *_arch_flags(arch)]
    key = _key("kernel", cuda_text, *flags, "", *kernels)
    folder = cache_dir("virtual", key[:2])
    output = folder / f"{key}.so"
    if output.exists():
        return output
    with locked(output):
        if not output.exists():
            cuda_path = folder / f"{key}.cu"
            unit = folder / f"{key}.cpp"
            atomic_write(cuda_path, cuda_text)
            # Checked builds take the text as it is.
            included = f'#include "{cuda_path}"'
            if not checked and (text := batched(cuda_text)) != cuda_text:
                included = f'#line 1 "{cuda_path}"\n{text}\n#line 1 "{unit}"'
            atomic_write(unit, _translation_unit(included, [known[name] for name in kernels]))
            _compile([unit], output, [*flags, f"-I{_precompiled(flags)}"])
    return output


@functools.cache
def build_library() -> Path:
    """Compiles the virtual GPU itself (libvgpu), cached like kernels are."""
    output = cache_dir("virtual") / f"libvgpu-{_key('library', *_LIBRARY_FLAGS)}.so"
    if not output.exists():
        with locked(output):
            if not output.exists():
                _compile(sorted(_CSRC.glob("*.cpp")), output, [*_flags(), *_LIBRARY_FLAGS])
    return output


def lines(module: Path, sites: Sequence[int]) -> dict[int, int]:
    """Lines of the CUDA text, by site, of instructions of a checked build; unknown ones missing.

    Asks addr2line, which comes with the compiler.
    """
    known = sorted({site for site in sites if site})
    if not known:
        return {}
    command = ["addr2line", "-a", "-i", "-e", str(module), *(hex(site) for site in known)]
    try:
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return {}
    found: dict[int, int] = {}
    site = 0
    for line in text.splitlines():
        if line.startswith("0x"):
            site = int(line, 16)
        # Frames from the innermost out; the first in the CUDA text is where it says so.
        elif (match := re.search(r"\.cu:(\d+)", line)) and site not in found:
            found[site] = int(match[1])
    return found
