"""A bundle as something to install: a wheel, or a repository of Hugging Face's ``kernels``.

Both hold the bundle and a copy of the runtime, so they need torch and apache-tvm-ffi only; their
torch ops are called after the package, so several may live in one process.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tileproof
from tileproof import runtime
from tileproof.dsl import check
from tileproof.runtime.bundle import Bundle
from tileproof.runtime.cache import replacing

_RUNTIME = Path(runtime.__file__).parent
_SOURCES = ("*.py", "csrc/driver.h", "virtual/*.py", "virtual/csrc/**/*", "virtual/include/**/*")
_DEPENDS = ("torch>=2.7", "apache-tvm-ffi>=0.1.12,<0.1.13")
_TIME = (1980, 1, 1, 0, 0, 0)  # of every file in a wheel: two builds are equal

_INIT = '''"""{doc}"""

from pathlib import Path as _Path

from .runtime import BundleError, Library, MissingKernel, use
from .runtime import load as _load

__all__ = ["BundleError", "Library", "MissingKernel", "load", "use"]
_loaded = []


def load(backend="auto", arch=None, **options):
    """The ops of this package; backend is "cuda", "virtual", "null" or "auto"."""
    _loaded[:] = [_load(_Path(__file__).with_name("bundle"), backend, arch, **options)]
    return _loaded[0]


def __getattr__(name):
    if name.startswith("_"):
        raise AttributeError(name)
    return getattr(_loaded[0] if _loaded else load(), name)
'''


def _package(bundle: Bundle, *, cubins: bool = True) -> dict[str, bytes]:
    """The files of a package, by their path in it. Raises BundleError for a damaged bundle."""
    ops = ", ".join(bundle.manifest["ops"])
    files = {"__init__.py": _INIT.format(doc=f"Kernels compiled ahead of time: {ops}.").encode()}
    for pattern in _SOURCES:
        for path in _RUNTIME.glob(pattern):
            if path.is_file():
                files[f"runtime/{path.relative_to(_RUNTIME)}"] = path.read_bytes()
    for name in ("manifest.json", "manifest.sha256"):
        files[f"bundle/{name}"] = (bundle.path / name).read_bytes()
    for name in bundle.manifest["files"]:
        if cubins or not name.endswith((".cubin", ".ptx")):
            files[f"bundle/{name}"] = bundle.read(name)
    return dict(sorted(files.items()))


def _platform(bundle: Bundle) -> tuple[str, str]:
    """Machine and platform tag of the bundle's launchers, e.g. ``manylinux_2_34_x86_64``.

    The tag follows from the versions of the C and C++ libraries the launchers ask for.
    """
    (name, library), *others = bundle.manifest["launchers"].items()
    check(not others, "platforms of the launchers", got=len(others) + 1, expected="one")
    system, _, machine = name.partition("-")
    check(system == "linux", "platform of the launchers", got=name, expected="linux-*")
    data = bundle.read(library)
    needs = [(2, 17)]
    needs += [(int(a), int(b)) for a, b in re.findall(rb"GLIBC_(\d+)\.(\d+)", data)]
    asked = max([0, *(int(n) for n in re.findall(rb"GLIBCXX_3\.4\.(\d+)", data))])
    newest = next((glibc for known, glibc in _LIBSTDCXX if asked <= known), None)
    check(newest is not None, "C++ library of the launchers", got=asked, expected="a known version")
    needs.append((2, newest or 0))
    major, minor = max(needs)
    return machine, f"manylinux_{major}_{minor}_{machine}"


# GLIBCXX_3.4.x → the first glibc 2.y of a manylinux policy that admits it (PEP 600).
_LIBSTDCXX = ((19, 17), (24, 24), (25, 28), (28, 31), (29, 34), (30, 35), (32, 38), (33, 39))


def write_wheel(bundle_path: Path, name: str, folder: Path) -> Path:
    """The bundle as a wheel in `folder`; ``import <name>`` gives its ops.

    Raises ContractError for a name that is no Python identifier, BundleError for a damaged bundle.
    """
    check(name.isidentifier(), "name of the wheel", got=repr(name), expected="an identifier")
    bundle = Bundle(bundle_path)
    _, tag = _platform(bundle)
    release = tileproof.__version__
    info = f"{name}-{release}.dist-info"
    archs = ", ".join(bundle.archs)
    metadata = [
        "Metadata-Version: 2.1",
        f"Name: {name}",
        f"Version: {release}",
        f"Summary: Kernels compiled ahead of time for {archs}",
        f"License: {bundle.manifest['license']}",
        "Requires-Python: >=3.10",
        *(f"Requires-Dist: {d}" for d in _DEPENDS),
    ]
    wheel = ["Wheel-Version: 1.0", "Generator: tileproof", "Root-Is-Purelib: false"]
    wheel.append(f"Tag: py3-none-{tag}")
    files = {f"{name}/{path}": data for path, data in _package(bundle).items()}
    files |= {
        f"{info}/METADATA": ("\n".join(metadata) + "\n").encode(),
        f"{info}/WHEEL": ("\n".join(wheel) + "\n").encode(),
    }
    record = [f"{path},sha256={_digest(data)},{len(data)}" for path, data in files.items()]
    record.append(f"{info}/RECORD,,")
    files[f"{info}/RECORD"] = ("\n".join(record) + "\n").encode()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{release}-py3-none-{tag}.whl"
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for member, data in files.items():
            entry = zipfile.ZipInfo(member, _TIME)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, data, zipfile.ZIP_DEFLATED)
    return path


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def write_hf_kernels(bundle_path: Path, name: str, folder: Path) -> list[Path]:
    """The bundle as a repository that Hugging Face's ``kernels`` loads, below `folder`.

    One build variant for CUDA, and one for the CPU, without cubins, which runs on the virtual GPU.
    Returns the variants' folders. Raises ContractError for a name that is no Python identifier.
    """
    check(name.isidentifier(), "name of the kernel", got=repr(name), expected="an identifier")
    bundle = Bundle(bundle_path)
    machine, _ = _platform(bundle)
    ffi = "".join(version("apache-tvm-ffi").split(".")[:2])
    cuda = bundle.manifest["tools"]["nvcc"].split(".")[0]  # any minor version of the driver will do
    written = []
    for kind, backend in ((f"cu{cuda}0", "cuda"), ("cpu", "cpu")):
        variant = folder / "build" / f"tvm-ffi{ffi}-{kind}-{machine}-linux"
        files = _package(bundle, cubins=backend == "cuda")
        digest = hashlib.sha256(b"".join(files.values())).hexdigest()[:8]
        files["metadata.json"] = _metadata(bundle, name, backend, digest)
        for path, data in files.items():
            (variant / path).parent.mkdir(parents=True, exist_ok=True)
            (variant / path).write_bytes(data)
        written.append(variant)
    return written


def _metadata(bundle: Bundle, name: str, backend: str, digest: str) -> bytes:
    about: dict[str, Any] = {"type": backend}
    if backend == "cuda":
        about["archs"] = [_capability(arch) for arch in bundle.archs]
    return json.dumps(
        {
            "id": f"_{name}_{backend}_{digest}",
            "name": name.replace("_", "-"),
            "version": 1,
            "license": bundle.manifest["license"],
            "python-depends": ["tvm-ffi"],
            "backend": about,
        },
        indent=1,
    ).encode()


def _capability(arch: str) -> str:
    """``sm_90a`` → ``9.0a``, as ``kernels`` writes it."""
    digits = arch.removeprefix("sm_").rstrip("a")
    return f"{digits[:-1]}.{digits[-1]}{'a' if arch.endswith('a') else ''}"
