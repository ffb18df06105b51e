"""Reading a bundle: nothing in it is used before its hash was compared with the manifest's."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import BundleError, check

SCHEMA = 4


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of the bundle `folder`, after checking its hash and its schema.

    Raises BundleError in one sentence for anything that is not a whole bundle of this version.
    """
    text = _read(folder / "manifest.json")
    wanted = _read(folder / "manifest.sha256").decode(errors="replace").split()[:1]
    _compare(folder / "manifest.json", text, wanted[0] if wanted else "nothing")
    manifest = dict(json.loads(text))
    check(
        manifest.get("schema") == SCHEMA,
        f"{folder}: schema",
        got=manifest.get("schema"),
        expected=f"{SCHEMA}; build it again with this version of tileproof",
    )
    return manifest


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise BundleError(f"{path}: got no such file, expected a bundle's {path.name}") from None


def _compare(path: Path, data: bytes, wanted: str) -> None:
    got = hashlib.sha256(data).hexdigest()
    words = f"got sha256 {got[:16]}… over {len(data)} bytes, expected {wanted[:16]}…"
    if got != wanted:
        raise BundleError(f"{path}: {words}; the file was changed or cut off, copy it again")


class Bundle:
    """A verified manifest and verified access to the files it lists."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.manifest = read_manifest(self.path)

    @property
    def archs(self) -> Mapping[str, Mapping[str, Any]]:
        """The architectures of the bundle, oldest first, with the devices each runs on."""
        archs: Mapping[str, Mapping[str, Any]] = self.manifest["archs"]
        order = sorted(archs, key=lambda name: int("".join(filter(str.isdigit, name))))
        return {name: archs[name] for name in order}

    def read(self, name: str) -> bytes:
        """The bytes of one file of the bundle. Raises BundleError if they are not as built."""
        entry = self.manifest["files"].get(name)
        check(entry is not None, f"{self.path}: file", got=name, expected="one of the manifest's")
        data = _read(self.path / name)
        _compare(self.path / name, data, entry["sha256"])
        return data

    def launchers(self) -> Path:
        """The verified library of launchers for this platform."""
        here = f"{sys.platform}-{platform.machine()}"
        libraries = self.manifest["launchers"]
        have = ", ".join(sorted(libraries))
        check(here in libraries, f"{self.path}: launchers", got=f"those of {have}", expected=here)
        self.read(libraries[here])
        return self.path / str(libraries[here])

    def arch_for(self, capability: int) -> tuple[str, str]:
        """The newest architecture whose code runs on a device, e.g. 90 for capability 9.0, and
        which code: its ``"cubin"``, or its ``"ptx"`` where no cubin fits.

        Raises BundleError naming what the bundle has and the command that builds what is missing.
        """
        version = list(divmod(capability, 10))
        fitting = [a for a, facts in self.archs.items() if version in facts["runs_on"]]
        if fitting:
            return fitting[-1], "cubin"
        # PTX is compiled by the driver, for its own device and any newer one.
        older = [a for a, facts in self.archs.items() if facts["ptx"] and facts["ptx"] <= version]
        if older:
            return older[-1], "ptx"
        have = ", ".join(self.archs)
        options = _options(version)
        advice = (
            f"run: tileproof build {options} -o {self.path}" if options else "none can be built"
        )
        raise BundleError(
            f"{self.path}: got code for {have}, expected code for a device of compute capability "
            f"{version[0]}.{version[1]}; {advice}"
        )


def _options(version: Sequence[int]) -> str:
    """What to ask `tileproof build` for: 9.0 → sm_90a, 8.6 → sm_80, 10.3 → PTX; "" below 8.0."""
    major, minor = version
    if major == 8:
        return "--arch sm_89" if minor == 9 else "--arch sm_80"
    if (major, minor) in ((9, 0), (10, 0), (12, 0)):
        return f"--arch sm_{major}{minor}a"
    return "--arch sm_80 --ptx" if major > 8 else ""
