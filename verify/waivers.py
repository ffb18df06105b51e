"""Committed waivers: which UNKNOWN or ALARM is tolerated, why, and until when.

A waiver never turns anything into PROVED: the property keeps its verdict and the report says
"waived". What was refuted, or could not be asked at all, cannot be waived.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from datetime import date, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tileproof.dsl import check

from .model import Report, Verdict

_KEYS = ("kernel", "arch", "property", "verdict", "reason", "expires")
_WAIVABLE = (Verdict.UNKNOWN, Verdict.ALARM)


@dataclass(frozen=True)
class Waiver:
    """One entry. `kernel` and `arch` may be patterns with ``*``; it holds through `expires`."""

    kernel: str
    arch: str
    property: str
    verdict: Verdict
    reason: str
    expires: date

    def __str__(self) -> str:
        return f"waiver of {self.kernel} {self.arch} {self.property} {self.verdict.value}"

    def covers(self, kernel: str, arch: str, name: str, verdict: Verdict) -> bool:
        """Whether it speaks of this verdict."""
        named = fnmatchcase(kernel, self.kernel) and fnmatchcase(arch, self.arch)
        return named and (name, verdict) == (self.property, self.verdict)


def read(path: Path) -> list[Waiver]:
    """The waivers of a TOML file, each a ``[[waiver]]`` table. Raises ContractError if it cannot be
    read or an entry lacks a key."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    check(path.is_file(), "baseline", got=str(path), expected="a file that exists")
    try:
        data = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: got {error}, expected TOML") from None
    unknown = sorted(set(data) - {"waiver"})
    entries = data.get("waiver", [])
    fits = not unknown and isinstance(entries, list)
    check(fits, str(path), got=unknown or "one table", expected="[[waiver]] tables")
    return [_waiver(entry, f"{path}: waiver {i + 1}") for i, entry in enumerate(entries)]


def _waiver(entry: Any, where: str) -> Waiver:
    got = sorted(entry)
    check(set(entry) == set(_KEYS), where, got=got, expected=f"exactly {sorted(_KEYS)}")
    expires = entry["expires"]
    dated = isinstance(expires, date) and not isinstance(expires, datetime)
    check(dated, f"{where}: expires", got=repr(expires), expected="a date such as 2027-01-31")
    for key in ("kernel", "arch", "property", "reason"):
        text = entry[key]
        filled = isinstance(text, str) and bool(text.strip())
        check(filled, f"{where}: {key}", got=repr(text), expected="some text")
    names = [v.value for v in _WAIVABLE]
    expected = f"{' or '.join(names)}; nothing else can be waived"
    check(entry["verdict"] in names, f"{where}: verdict", got=entry["verdict"], expected=expected)
    return Waiver(**{**entry, "verdict": Verdict(entry["verdict"])})


def apply(report: Report, waivers: list[Waiver], today: date | None = None) -> list[str]:
    """Mark what is waived in `report`; a sentence for every waiver that expired or met nothing."""
    now = today or date.today()
    used: set[Waiver] = set()
    for kernel in report.kernels:
        for name, p in kernel.properties.items():
            for w in waivers:
                if not w.covers(kernel.kernel, kernel.arch, name, p.verdict):
                    continue
                used.add(w)
                if now <= w.expires and not p.waived:
                    p.waived = f"{w.reason} (until {w.expires})"
    stale = [f"{w} expired on {w.expires}" for w in waivers if now > w.expires]
    stale += [f"{w} is unused, remove it" for w in waivers if now <= w.expires and w not in used]
    return stale
