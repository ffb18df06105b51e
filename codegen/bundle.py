"""The bundle: one folder with cubins, CUDA text, launchers and a manifest that vouches for them.

manifest.json          ops, specializations, resources, proofs, and sha256 of every other file
manifest.sha256        of manifest.json
launchers.<platform>.so
cubin/<symbol>.<arch>.cubin
cuda/<symbol>.<arch>.cu
ptx/<symbol>.<arch>.ptx    if asked for
"""

from __future__ import annotations

import ctypes
import hashlib
import inspect
import json
import platform
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tileproof
from tileproof.dsl import Op, Specialization, arch, check
from tileproof.runtime.bundle import SCHEMA
from tileproof.runtime.cache import atomic_write, cache_dir, locked

from .host import HostKernel, PlannedLaunch, compile_launchers, generate
from .resources import Resources
from .toolchain import Versions

# What device code and launchers are made of.
_LICENSES = {
    "tileproof": "MIT",
    "tilelang": "MIT",
    "cutlass": "BSD-3-Clause",
    "tvm-ffi": "Apache-2.0",
}


@dataclass(frozen=True)
class Unit:
    """One specialization compiled for one architecture. `ptx` if devices that are newer than every
    architecture shall be served, `proofs` if it was proved: plain data with a verdict."""

    spec: Specialization
    arch: str
    launches: tuple[PlannedLaunch, ...]
    cuda: str
    cubin: bytes
    resources: tuple[Resources, ...]
    ptx: str | None = None
    proofs: Mapping[str, Any] | None = None


def describe(op: Op) -> dict[str, Any]:
    """Everything the runtime needs to know about `op`, as plain data (a manifest's op entry).

    `reference.takes` names the params and static dims the reference wants besides the inputs; a
    user's kernel has no reference.
    """
    reference = None
    if (function := op.reference) is not None:
        known = {*op.params, *op.dims, *op.types}
        asked = list(inspect.signature(function).parameters.values())[len(op.inputs) :]
        # What has a default and is nothing of the op's is the reference's own affair.
        wanted = [p.name for p in asked if p.name in known or p.default is p.empty]
        path = f"{function.__module__}:{function.__qualname__}"
        reference = {"path": path, "takes": wanted}
    return {
        "name": op.name,
        "doc": op.doc,
        "args": [
            {
                "name": a.name,
                "shape": list(a.shape),
                "strides": None if a.strides is None else list(a.strides),
                "elements": None if a.values is None else asdict(a.values),
                "dtype": a.dtype,
                "role": a.role,
            }
            for a in op.args
        ],
        "dims": {
            letter: {
                "lo": d.lo,
                "hi": d.hi,
                "multiple": d.multiple,
                "static": d.static,
                "derived": d.derived is not None,
            }
            for letter, d in op.dims.items()
        },
        "types": {k: list(v) for k, v in op.types.items()},
        "params": dict(op.params),
        "reference": reference,
    }


def platform_tag() -> str:
    """The platform native code of this process runs on, e.g. ``linux-x86_64``."""
    return f"{sys.platform}-{platform.machine()}"


def write_bundle(units: Sequence[Unit], out: Path, tools: Versions) -> Path:
    """Write `units` as the bundle `out`, replacing a bundle that is there in one step.

    Raises ContractError when `out` is something else than a bundle.
    """
    replaceable = not out.exists() or (out / "manifest.json").exists() or _is_empty(out)
    check(replaceable, "output folder", got=f"{out} with other files", expected="a new folder")
    files, manifest = _contents(units, tools)
    out.parent.mkdir(parents=True, exist_ok=True)
    with locked(cache_dir("bundles") / hashlib.sha256(bytes(out.resolve())).hexdigest()):
        for left in out.parent.glob(f".{out.name}.*"):  # by a build that was killed
            shutil.rmtree(left, ignore_errors=True)
        stage = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        try:
            for name, data in files.items():
                (stage / name).parent.mkdir(exist_ok=True)
                (stage / name).write_bytes(data)
            _write_manifest(stage, manifest)
            stage.chmod(0o755)
            if out.exists():
                _exchange(stage, out)
            else:
                stage.rename(out)
        finally:
            shutil.rmtree(stage, ignore_errors=True)
    return out


_HERE, _EXCHANGE = -100, 2  # AT_FDCWD, RENAME_EXCHANGE


def _exchange(stage: Path, out: Path) -> None:
    """Two folders change places, in one step where the file system can do that."""
    swap = getattr(ctypes.CDLL(None), "renameat2", None)
    if swap is not None and swap(_HERE, bytes(stage), _HERE, bytes(out), _EXCHANGE) == 0:
        return
    old = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    out.rename(old)
    stage.rename(out)
    old.rename(stage)


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def _contents(units: Sequence[Unit], tools: Versions) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Every file of the bundle but the manifest, and the manifest."""
    units = sorted(units, key=lambda u: (u.spec.symbol, arch_order(u.arch)))
    files: dict[str, bytes] = {}
    hosts: dict[str, HostKernel] = {}
    entries: dict[str, dict[str, Any]] = {}
    for unit in units:
        symbol = unit.spec.symbol
        cubin, cuda = f"cubin/{symbol}.{unit.arch}.cubin", f"cuda/{symbol}.{unit.arch}.cu"
        ptx = f"ptx/{symbol}.{unit.arch}.ptx" if unit.ptx is not None else None
        files |= {cubin: unit.cubin, cuda: unit.cuda.encode()}
        if ptx is not None and unit.ptx is not None:
            files[ptx] = unit.ptx.encode()
        host = hosts.get(symbol, HostKernel(unit.spec, ()))
        if unit.launches not in host.plans:
            host = HostKernel(unit.spec, (*host.plans, unit.launches))
        hosts[symbol] = host
        entry = entries.setdefault(symbol, _specialization(unit.spec))
        entry["archs"][unit.arch] = {
            "cubin": cubin,
            "cuda": cuda,
            "ptx": ptx,
            "plan": host.plans.index(unit.launches),
            "launches": [launch.to_json() for launch in unit.launches],
            "resources": [used.to_json() for used in unit.resources],
            "proofs": None if unit.proofs is None else dict(unit.proofs),
        }
    library = f"launchers.{platform_tag()}.so"
    files[library] = compile_launchers(generate(list(hosts.values())))
    ops = {unit.spec.op.name: unit.spec.op for unit in units}
    archs = sorted({unit.arch for unit in units}, key=arch_order)
    manifest = {
        "schema": SCHEMA,
        "tileproof": tileproof.__version__,
        "license": "MIT",
        "licenses": _LICENSES,
        "tools": asdict(tools),
        "archs": {a: _arch(a, any(u.ptx for u in units if u.arch == a)) for a in archs},
        "launchers": {platform_tag(): library},
        "ops": {name: describe(op) for name, op in sorted(ops.items())},
        "specializations": entries,
        "files": {
            name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
            for name, data in sorted(files.items())
        },
    }
    return files, manifest


def _arch(name: str, ptx: bool) -> dict[str, Any]:
    """Devices that run an architecture's cubins; the oldest its PTX is for, if there is any."""
    target = arch(name)
    oldest = list(target.runs_on[0]) if ptx else None
    return {"runs_on": target.runs_on, "cards": target.cards, "ptx": oldest}


def arch_order(name: str) -> int:
    """``sm_90a`` → 90: architectures in the order of their generations."""
    return int("".join(c for c in name if c.isdigit()))


def _specialization(spec: Specialization) -> dict[str, Any]:
    return {
        "op": spec.op.name,
        "dims": dict(spec.dims),
        "types": dict(spec.types),
        "params": dict(spec.params),
        "archs": {},
    }


def _write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    text = json.dumps(manifest, indent=1) + "\n"
    digest = hashlib.sha256(text.encode()).hexdigest()
    for name, content in (
        ("manifest.json", text),
        ("manifest.sha256", f"{digest}  manifest.json\n"),
    ):
        atomic_write(folder / name, content)
        (folder / name).chmod(0o644)  # others may load a bundle; a temporary file is private
