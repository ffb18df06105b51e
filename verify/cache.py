"""Results of earlier proofs, found again by what they were a proof of.

The key covers the device and host IR (without the target, so architectures with equal code share
one proof), every assumption, the tools' versions and the prover's own source. For an op of the
library a second key covers the sources of everything that leads to its IR, so that nothing needs to
be lowered when nothing changed.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

from tileproof.codegen.toolchain import versions
from tileproof.dsl import Specialization

from .domain import Domain
from .model import KernelReport, Route


class Results:
    """Results of earlier proofs: this object's own, and those on disk unless `lasting` is false."""

    def __init__(self, lasting: bool = True) -> None:
        self.lasting = lasting
        self._here: dict[str, dict[str, Any]] = {}

    def read(self, name: str) -> KernelReport | None:
        """An earlier result, or None. A damaged entry counts as none."""
        if name not in self._here:
            if not self.lasting:
                return None
            try:
                self._here[name] = json.loads(_path(name).read_text())
            except (OSError, ValueError):
                return None
        return KernelReport.from_dict(self._here[name])

    def write(self, name: str, report: KernelReport) -> None:
        """Keep a result. A cache that cannot be written costs time, never the result."""
        from tileproof.runtime.cache import atomic_write

        self._here[name] = report.to_dict()
        if self.lasting:
            with contextlib.suppress(OSError):
                atomic_write(_path(name), json.dumps(self._here[name]))


Use: TypeAlias = bool | Results  # of earlier results: yes, no, or those of one run
_EARLIER = Results()


def results(use: Use) -> Results | None:
    """Where results are looked up and kept; None for nowhere."""
    if isinstance(use, Results):
        return use
    return _EARLIER if use else None


@cache
def tools() -> dict[str, str]:
    """Versions of everything a verdict depends on."""
    return {
        "tileproof": version("tileproof"),
        "tilelang": version("tilelang"),
        "z3-solver": version("z3-solver"),
        "prover": sources("verify"),
    }


def ir_hash(lowered: Any) -> str:
    """Hash of the program that will run, as text."""
    digest = hashlib.sha256()
    for mod in (lowered.device_mod, lowered.host_mod):
        for _, function in mod.functions_items():
            bare = function.without_attr("target") if function.attrs else function
            digest.update(bare.script(show_meta=False).encode())
    return digest.hexdigest()[:16]


def key(
    program: str, domain: Domain, sizes: Mapping[str, int], rlimit: int, limits: Sequence[int] = ()
) -> str:
    """Where the result for a program under a domain lives; `sizes` are its shared buffers'.

    `limits` are those of the architecture that make a difference.
    """
    tensors = [
        (t.name, t.dtype, str(t.shape), t.align, t.written, t.inout)
        for t in domain.tensors.values()
    ]
    parts = [
        program,
        sorted(sizes.items()),
        domain.describe(),
        domain.assumptions(),
        tensors,
        domain.notes,
        domain.batch,
        domain.deterministic,
        rlimit,
        list(limits),
        tools(),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def source_key(spec: Specialization, arch: str, route: Route = "ir") -> str:
    """Where the result for an op of the library lives, known without lowering it."""
    parts = [
        spec.op.name,
        spec.symbol,
        sorted(spec.params.items()),
        arch,
        tools(),
        sources("dsl", "kernels", "codegen"),
    ]
    parts += [] if route == "ir" else [route, versions().nvcc]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


@cache
def sources(*packages: str) -> str:
    """Hash of the Python sources of packages of ours."""
    digest = hashlib.sha256()
    for package in packages:
        for root in importlib.import_module(f"tileproof.{package}").__path__:
            for path in sorted(Path(root).rglob("*.py")):
                digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _path(name: str) -> Path:
    from tileproof.runtime.cache import cache_dir

    return cache_dir("proofs") / f"{name}.json"
