"""What is true of a kernel's arguments: said in Python or JSON for a user's kernel, taken from the
declaration for an op of the library."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .check import check

if TYPE_CHECKING:
    from .spec import Specialization

Bound = int | str

# Where :func:`assume` leaves its facts: on a prim_func as JSON, on a Python object as they are.
ATTRIBUTE = "tileproof.facts"
_NOTE = "__tileproof_facts__"
Kernel = TypeVar("Kernel")


@dataclass(frozen=True)
class Facts:
    """Facts about the arguments of one kernel. Each applies where an argument of that name exists.

    Args:
        dims: inclusive range of a size or scalar.
        values: inclusive range of an integer tensor's elements; ends may be expressions of sizes.
        monotone: integer tensors whose elements do not decrease along the last dim.
        distinct: integer tensors no two of whose elements are equal, "no index" aside.
        multiples: what a size is a multiple of.
        strides: for a tensor, the admitted lists of strides (sizes or names) per dim.
        inout: written tensors whose contents before the call matter; every other one is output.
        written: output contract, ``"once"`` (each element by one thread) or ``"all"``.
        deterministic: whether the result may depend on no order of execution.
        batch: dims that may not influence how others are reduced.
        none: the value of an integer tensor that means "no index", beside its range.
        align: bytes of which a tensor's address is a multiple, 16 if nothing is said.
    """

    dims: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    values: Mapping[str, tuple[Bound, Bound]] = field(default_factory=dict)
    monotone: tuple[str, ...] = ()
    distinct: tuple[str, ...] = ()
    multiples: Mapping[str, int] = field(default_factory=dict)
    strides: Mapping[str, tuple[tuple[Bound, ...], ...]] = field(default_factory=dict)
    inout: tuple[str, ...] = ()
    written: Mapping[str, str] = field(default_factory=dict)
    deterministic: bool = True
    batch: tuple[str, ...] = ()
    none: Mapping[str, int] = field(default_factory=dict)
    align: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "facts") -> Facts:
        """Facts from one JSON object. Raises ContractError for a key or value it cannot be."""
        check(isinstance(data, Mapping), where, got=_kind(data), expected="an object")
        known = [f.name for f in fields(cls)]
        unknown = sorted(set(data) - set(known))
        check(not unknown, where, got=f"unknown keys {unknown}", expected=f"among {known}")
        return cls(**{key: _READERS[key](value, f"{where}.{key}") for key, value in data.items()})

    @classmethod
    def read(cls, facts: Facts | Mapping[str, Any] | None) -> Facts:
        """Facts however they were given."""
        return facts if isinstance(facts, Facts) else cls.from_dict(facts or {})

    def updated(self, more: Facts) -> Facts:
        """These facts and `more`; of two that speak of the same name, the one in `more`."""

        def join(mine: Any, other: Any) -> Any:
            if isinstance(mine, Mapping):
                return {**mine, **other}
            return mine and other if isinstance(mine, bool) else (*mine, *other)

        names = [f.name for f in fields(self)]
        return Facts(**{n: join(getattr(self, n), getattr(more, n)) for n in names})

    @classmethod
    def from_json(cls, path: Path) -> Facts:
        """Facts from a JSON file."""
        try:
            data = json.loads(path.read_text())
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: got {error}, expected one JSON object") from None
        return cls.from_dict(data, str(path))

    @classmethod
    def of(cls, spec: Specialization) -> Facts:
        """What an op's declaration says."""
        dynamic = spec.op.dynamic
        ranged = {a.name: a.values for a in spec.args if a.values is not None}
        return cls(
            dims={letter: (d.lo, d.hi) for letter, d in dynamic.items()},
            values={name: (v.lo, v.hi) for name, v in ranged.items()},
            monotone=tuple(name for name, v in ranged.items() if v.monotone),
            distinct=tuple(name for name, v in ranged.items() if v.distinct),
            multiples={letter: d.multiple for letter, d in dynamic.items()},
            inout=tuple(a.name for a in spec.args if a.role == "inout"),
            written={a.name: a.written for a in spec.args if a.written is not None},
            batch=tuple(letter for letter, d in dynamic.items() if d.batch),
            none={name: v.none for name, v in ranged.items() if v.none is not None},
            align={a.name: a.align for a in spec.args},
        )


def assume(**facts: Any) -> Callable[[Kernel], Kernel]:
    """Decorator of a kernel of your own: what every proof and every sanitizer run may take as true.

    ``@assume(dims={"m": [0, 1 << 20]}, values={"Idx": [0, "rows-1"]})`` stands above a prim_func, a
    ``@tilelang.jit`` function or a factory; the keywords are the fields of :class:`Facts`. Nothing
    checks these facts at a launch: that is the caller's duty.
    """
    Facts.from_dict(facts, "assume")

    def note(kernel: Any) -> Any:
        if hasattr(kernel, "with_attr"):  # a prim_func
            joined = {**json.loads(dict(kernel.attrs or {}).get(ATTRIBUTE, "{}")), **facts}
            return kernel.with_attr(ATTRIBUTE, json.dumps(joined))
        setattr(kernel, _NOTE, {**noted(kernel), **facts})
        return kernel

    return note


def noted(kernel: Any) -> dict[str, Any]:
    """What :func:`assume` noted on a Python object, or on the function it wraps."""
    inner = getattr(getattr(kernel, "func", None), _NOTE, {})
    return {**inner, **getattr(kernel, _NOTE, {})}


def draw_distinct(rng: Any, flat: Any, lo: int, hi: int, none: int | None) -> None:
    """Overwrite the flat array `flat` with different numbers of lo..hi, both ends among them.

    Where there are not enough the rest is `none`; one element is, where there is such a value.
    Raises ContractError where there is not.
    """
    there = min(max(hi - lo + 1, 0), flat.size)
    if none is not None:
        there = min(there, max(flat.size - 1, 1))
    expected = f"at most {max(hi - lo + 1, 0)} different elements"
    check(there == flat.size or none is not None, "distinct", got=flat.size, expected=expected)
    picks = {lo, hi} if there > 1 else set()
    while len(picks) < there:
        picks |= set(rng.integers(lo, hi, there - len(picks), endpoint=True).tolist())
    flat[:] = none
    flat[rng.permutation(flat.size)[:there]] = rng.permutation(sorted(picks))


# --- readers of the JSON values ------------------------------------------------------------------


def _kind(value: Any) -> str:
    return type(value).__name__


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _mapping(read: Callable[[Any, str], Any]) -> Callable[[Any, str], dict[str, Any]]:
    def reader(value: Any, where: str) -> dict[str, Any]:
        check(isinstance(value, Mapping), where, got=_kind(value), expected="an object")
        return {str(k): read(v, f"{where}.{k}") for k, v in value.items()}

    return reader


def _names(value: Any, where: str) -> tuple[str, ...]:
    fits = isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value)
    check(fits, where, got=repr(value), expected="a list of names")
    return tuple(value)


def _dim_range(value: Any, where: str) -> tuple[int, int]:
    fits = isinstance(value, (list, tuple)) and len(value) == 2 and all(map(_is_int, value))
    check(fits and value[0] <= value[1], where, got=repr(value), expected="[lowest, highest]")
    return value[0], value[1]


def _value_range(value: Any, where: str) -> tuple[Bound, Bound]:
    fits = isinstance(value, (list, tuple)) and len(value) == 2
    fits = fits and all(_is_int(v) or isinstance(v, str) for v in value)
    expected = "[lowest, highest], integers or expressions of sizes"
    check(fits, where, got=repr(value), expected=expected)
    return value[0], value[1]


def _positive(value: Any, where: str) -> int:
    check(_is_int(value) and value > 0, where, got=repr(value), expected="a positive integer")
    return int(value)


def _alignment(value: Any, where: str) -> int:
    fits = _is_int(value) and value > 0 and value & (value - 1) == 0
    check(fits, where, got=repr(value), expected="a power of two")
    return int(value)


def _integer(value: Any, where: str) -> int:
    check(_is_int(value), where, got=repr(value), expected="an integer")
    return int(value)


def _written(value: Any, where: str) -> str:
    check(value in ("once", "all"), where, got=repr(value), expected="'once' or 'all'")
    return str(value)


def _flag(value: Any, where: str) -> bool:
    check(isinstance(value, bool), where, got=repr(value), expected="true or false")
    return bool(value)


def _strides(value: Any, where: str) -> tuple[tuple[Bound, ...], ...]:
    def is_list(v: Any) -> bool:
        return isinstance(v, (list, tuple)) and all(_is_int(s) or isinstance(s, str) for s in v)

    fits = isinstance(value, (list, tuple)) and all(is_list(v) for v in value)
    check(fits, where, got=repr(value), expected="a list of lists of strides")
    return tuple(tuple(v) for v in value)


_READERS: dict[str, Callable[[Any, str], Any]] = {
    "dims": _mapping(_dim_range),
    "values": _mapping(_value_range),
    "monotone": _names,
    "distinct": _names,
    "multiples": _mapping(_positive),
    "strides": _mapping(_strides),
    "inout": _names,
    "written": _mapping(_written),
    "deterministic": _flag,
    "batch": _names,
    "none": _mapping(_integer),
    "align": _mapping(_alignment),
}
