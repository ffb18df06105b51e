"""Lowered kernels of the library on disk: a build and the proof of it share one lowering.

Lowering takes TileLang seconds for a large kernel, more than the proof of it. Only ops of the
library are kept: their sources are known completely, so the key can say what a lowering depends on.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.metadata
import json
import zlib
from pathlib import Path
from typing import Any

from tileproof import dsl
from tileproof.dsl import Specialization
from tileproof.runtime.cache import atomic_write, cache_dir

from . import hostir, lower
from .lower import Lowered

# The prover reads the sizes of shared tiles off the stage before this pass merges them.
MERGE = ":tl.MergeSharedMemoryAllocations"


def in_library(spec: Any) -> bool:
    """Whether `spec` is of one of our ops: its sources are under `kernels`."""
    if not isinstance(spec, Specialization) or not spec.op.variants:
        return False
    return spec.op.variants[0].factory.__module__.startswith("tileproof.kernels.")


def key(spec: Specialization, arch: str) -> str:
    """Hash of all that the lowering of a library op depends on; one for architectures alike."""
    params = json.dumps(sorted(spec.params.items()))
    arch = spec.op.variant(arch).lowered_for(arch)
    parts = [_sources(), _tilelang(), spec.symbol, params, arch]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


@functools.cache
def _sources() -> str:
    digest = hashlib.sha256()
    kernels = Path(next(iter(importlib.import_module("tileproof.kernels").__path__)))
    files = [*kernels.rglob("*.py"), *Path(dsl.__file__).parent.glob("*.py")]
    files += [Path(str(module.__file__)) for module in (lower, hostir)] + [Path(__file__)]
    for path in sorted(files):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


@functools.cache
def _tilelang() -> str:
    """Its version; looking it up takes milliseconds."""
    return importlib.metadata.version("tilelang")


def lowered(spec: Specialization, arch: str) -> Lowered:
    """As :func:`lower.lower` with its stages around the merge of shared memory, from the cache."""
    if not in_library(spec):
        return lower.lower(spec, arch, keep_stages=True)
    name = key(spec, arch)
    path = cache_dir("lowered", name[:2]) / f"{name}.ir"
    try:
        return _decode(path.read_bytes(), spec, arch)
    except (OSError, ValueError, zlib.error):
        pass  # not there, or damaged: lower it again
    result = lower.lower(spec, arch, keep_stages=True)
    atomic_write(path, _encode(result))
    return result


def _encode(kernel: Lowered) -> bytes:
    from tilelang import tvm

    names = list(kernel.stages)
    merge = next((i for i, name in enumerate(names) if name.endswith(MERGE)), 0)
    kept = names[merge - 1 : merge + 1] if merge else []
    parts = {
        "source": tvm.ir.save_json(kernel.source),
        "device": tvm.ir.save_json(kernel.device_mod),
        "host": tvm.ir.save_json(kernel.host_mod),
        "stages": {name: tvm.ir.save_json(kernel.stages[name]) for name in kept},
        "cuda": kernel.cuda,
        "written for": kernel.arch,
    }
    return zlib.compress(json.dumps(parts).encode(), level=1)


def _decode(data: bytes, spec: Specialization, arch: str) -> Lowered:
    # Nodes are found by type name; importing TileLang registers them.
    import tilelang  # noqa: F401
    from tilelang import tvm

    parts = json.loads(zlib.decompress(data))
    source = tvm.ir.load_json(parts["source"])
    return Lowered(
        name=str(source.attrs["global_symbol"]),
        arch=arch,
        source=source,
        written=parts["cuda"] if lower.same_text(parts["written for"], arch) else None,
        device_mod=tvm.ir.load_json(parts["device"]),
        host_mod=tvm.ir.load_json(parts["host"]),
        stages={name: tvm.ir.load_json(text) for name, text in parts["stages"].items()},
        spec=spec,
    )
