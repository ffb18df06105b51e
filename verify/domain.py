"""What a proof assumes: the ranges of sizes, the contracts of index tensors, pointer alignment.

Assumptions come from an ``Op`` (whose launcher checks the very same contracts before a launch) or,
for a user's kernel, from a facts object.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from tileproof.dsl import Specialization, check, layout
from tileproof.dsl.expression import fold
from tileproof.dsl.facts import Facts

from . import terms
from .intrinsics import UnmodelledError
from .terms import Symbol, Term, apply, const, le, mul, var

Given: TypeAlias = Facts | Mapping[str, Any] | None
DEFAULT_RANGE = (0, 1 << 20)
POINTER_ALIGN = 16


@dataclass(frozen=True, eq=False)
class ValueRange:
    """Contract of an integer tensor's elements: ``lo <= v <= hi``, or `none`; with `distinct` no
    two elements but `none` are equal."""

    lo: Term
    hi: Term
    none: int | None = None
    distinct: bool = False


@dataclass(frozen=True, eq=False)
class TensorFacts:
    """One tensor of the source signature and what is promised about it.

    `strides` are None for a contiguous tensor; else rows lie at least their length apart.
    """

    name: str
    dtype: str
    shape: tuple[Term, ...]
    align: int = POINTER_ALIGN
    written: str | None = None
    inout: bool = False
    values: ValueRange | None = None
    strides: tuple[Term, ...] | None = None

    def apart(self) -> list[Term]:
        """What "rows do not overlap" means."""
        if self.strides is None:
            return []
        steps = zip(self.strides, self.shape[1:], self.strides[1:], strict=False)
        return [le(mul(n, inner), outer) for outer, n, inner in steps]


@dataclass
class Domain:
    """Everything assumed about one kernel. `multiples` maps dims to the number dividing them.

    `batch` are the dims that may not influence how another is reduced. A kernel that is not
    `deterministic` may depend on the order of execution: nobody asks it not to.
    """

    dims: dict[str, Symbol] = field(default_factory=dict)
    multiples: dict[str, int] = field(default_factory=dict)
    tensors: dict[str, TensorFacts] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    unmodelled: list[str] = field(default_factory=list)
    batch: tuple[str, ...] = ()
    deterministic: bool = True

    def describe(self) -> dict[str, str]:
        """The dims and their ranges, for a report."""
        out = {}
        for name, symbol in self.dims.items():
            text = f"{symbol.lo.value}..{symbol.hi.value}"
            if name in self.multiples:
                text += f", a multiple of {self.multiples[name]}"
            if name in self.batch:
                text += ", batch"
            out[name] = text
        return out

    def assumptions(self) -> list[str]:
        """Every promise a proof rests on besides the dims, one sentence each."""
        out = []
        for t in self.tensors.values():
            layout = "contiguous"
            if t.strides is not None:
                steps = ", ".join(map(terms.show, t.strides))
                layout = f"strided ({steps}) without overlap"
            out.append(f"{t.name} is {layout} and aligned to {t.align} bytes")
            if t.values is not None:
                none = "" if t.values.none is None else f" or {t.values.none}"
                lo, hi = terms.show(t.values.lo), terms.show(t.values.hi)
                out.append(f"{lo} <= {t.name}[...] <= {hi}{none}")
            if t.values is not None and t.values.distinct:
                out.append(f"no two elements of {t.name} are equal, {t.values.none} aside")
        return out

    def complete(self, point: Mapping[Symbol, int]) -> dict[Symbol, int]:
        """`point` with the dims it leaves open at the least sizes that are possible."""
        full = dict(point)
        for s in self.dims.values():
            multiple = self.multiples.get(s.name, 1)
            full.setdefault(s, -(-int(s.lo.value) // multiple) * multiple)
        self.spread_rows(full)
        return {**full, **point}

    def spread_rows(self, point: dict[Symbol, int]) -> None:
        """Raise the strides of a point to the least that lets no rows overlap."""
        for tensor in self.tensors.values():
            row = 1
            strides = reversed(tensor.strides or ())
            for n, stride in zip(reversed(tensor.shape), strides, strict=False):
                if stride.op == "var" and point[stride.value] < row:
                    multiple = self.multiples.get(stride.value.name, 1)
                    point[stride.value] = -(-row // multiple) * multiple
                row = int(terms.evaluate(stride, point)) * int(terms.evaluate(n, point))

    def load_interval(self, term: Term, ranges: terms.Ranges) -> terms.Interval:
        """What a loaded element may be: its contract, else anything its type holds."""
        from .facts import integer_range

        tensor = self.tensors.get(term.value)
        if tensor is None:  # shared memory, see DeviceReader.common
            return integer_range(term.value.split(":")[0]) or (-(1 << 63), (1 << 63) - 1)
        if tensor.values is None:
            return integer_range(tensor.dtype) or (-(1 << 63), (1 << 63) - 1)
        lo, hi = ranges.of(tensor.values.lo)[0], ranges.of(tensor.values.hi)[1]
        none = tensor.values.none
        return (lo, hi) if none is None else (min(lo, none), max(hi, none))


def build(source: Any, spec: Specialization | None, facts: Given) -> Domain:
    """The domain of a source prim_func: from its op's declaration, then from user facts."""
    given = Facts.read(facts)
    domain = Domain()
    buffers = [source.buffer_map.get(p) for p in source.params]
    _dims(domain, source, buffers, spec, given)
    marked = [*given.batch]
    if spec is not None:
        marked += [name for name, d in spec.op.dynamic.items() if d.batch]
    for name in given.batch:
        expected = f"a size of the kernel ({', '.join(domain.dims)})"
        check(name in domain.dims, "facts.batch", got=name, expected=expected)
    domain.batch = tuple(name for name in domain.dims if name in marked)
    domain.deterministic = given.deterministic
    declared = spec.args if spec is not None else ()
    if spec is not None:
        check(
            len(declared) == sum(b is not None for b in buffers),
            f"{spec.op.name}: tensors of the kernel",
            got=sum(b is not None for b in buffers),
            expected=len(declared),
        )
    position = 0
    for buffer in buffers:
        if buffer is None:
            continue
        arg = declared[position] if declared else None
        position += 1
        shape = tuple(_shape_term(n, domain) for n in buffer.shape)
        name = str(buffer.name)
        strides = tuple(_shape_term(n, domain) for n in buffer.strides) or None
        if strides is not None and _same(strides, contiguous(shape)):
            strides = None
        if arg is not None:
            _declared(f"shape of {name}", shape, arg.shape, domain)
            _declared(f"strides of {name}", strides, arg.strides, domain)
        if name in given.strides:
            _admitted(name, strides or contiguous(shape), given.strides[name], domain)
        tensor = _tensor(name, str(buffer.dtype), shape, arg, given, domain)
        domain.tensors[name] = replace(tensor, strides=strides)
    return domain


def _dims(
    domain: Domain, source: Any, buffers: list[Any], spec: Specialization | None, given: Facts
) -> None:
    names: list[str] = []
    for p, buffer in zip(source.params, buffers, strict=True):
        if buffer is None:
            if str(p.dtype).startswith("int"):
                names.append(str(p.name))
            continue
        for n in (*buffer.shape, *buffer.strides):
            names += [v for v in _variables(n) if v not in names]
    declared = spec.op.dynamic if spec is not None else {}
    for name in dict.fromkeys(names):
        multiple = given.multiples.get(name, 1)
        if name in given.dims:
            lo, hi = given.dims[name]
        elif name in declared:
            lo, hi = declared[name].lo, declared[name].hi
        else:
            lo, hi = DEFAULT_RANGE
            domain.notes.append(f"{name} has no declared range: {lo}..{hi} is assumed")
        if name in declared:
            multiple *= declared[name].multiple
        check(lo <= hi, f"range of {name}", got=f"{lo}..{hi}", expected="lo <= hi")
        domain.dims[name] = Symbol(name, "dim", const(lo), const(hi))
        if multiple != 1:
            domain.multiples[name] = multiple
    unused = sorted(set(given.dims) - set(domain.dims))
    if unused and spec is None:
        domain.notes.append(f"facts.dims names no size of this kernel: {', '.join(unused)}")


def _tensor(
    name: str, dtype: str, shape: tuple[Term, ...], arg: Any, given: Facts, domain: Domain
) -> TensorFacts:
    align, written, inout, values = POINTER_ALIGN, None, False, None
    if arg is not None:
        align, written, inout = arg.align, arg.written, arg.role == "inout"
        if arg.values is not None:
            lo, hi = (expression(e, domain.dims) for e in (arg.values.lo, arg.values.hi))
            values = ValueRange(lo, hi, arg.values.none, arg.values.distinct)
    align = given.align.get(name, align)
    written = given.written.get(name, written)
    if name in given.values:
        lo, hi = (expression(str(e), domain.dims) for e in given.values[name])
        values = ValueRange(lo, hi, given.none.get(name), name in given.distinct)
    inout = inout or name in given.inout
    return TensorFacts(name, dtype, shape, align, written, inout, values)


def expression(source: str, dims: Mapping[str, Symbol]) -> Term:
    """A dim expression such as ``"T-1"`` as a term; anything else is a ContractError."""
    return fold(source, {name: var(s) for name, s in dims.items()}, const, apply)


def _admitted(
    name: str, got: tuple[Term, ...], choices: Sequence[Sequence[int | str]], domain: Domain
) -> None:
    lists = [tuple(expression(str(n), domain.dims) for n in wanted) for wanted in choices]
    expected = " or ".join(str(list(wanted)) for wanted in choices)
    shown = [terms.show(n) for n in got]
    check(any(_same(got, w) for w in lists), f"strides of {name}", got=shown, expected=expected)


def _variables(expr: Any) -> list[str]:
    from tilelang import tvm

    found: list[str] = []
    tvm.tirx.stmt_functor.post_order_visit(
        tvm.tirx.Evaluate(expr),
        lambda n: found.append(str(n.name)) if type(n).__name__ == "Var" else None,
    )
    return found


def contiguous(shape: tuple[Term, ...]) -> tuple[Term, ...]:
    """Strides of a tensor without gaps."""
    return tuple(terms.product(reversed(shape[i + 1 :])) for i in range(len(shape)))


def _same(a: tuple[Term, ...], b: tuple[Term, ...]) -> bool:
    return [terms.poly(n).terms for n in a] == [terms.poly(n).terms for n in b]


def _declared(
    what: str, got: tuple[Term, ...] | None, wanted: Sequence[int | str] | None, domain: Domain
) -> None:
    """The kernel's own shape or strides against a declaration; None stands for contiguous."""
    expected = None
    if wanted is not None:
        expected = tuple(expression(layout.expression(n), domain.dims) for n in wanted)
    fits = got is expected or (got is not None and expected is not None and _same(got, expected))
    shown = None if got is None else [terms.show(n) for n in got]
    check(fits, what, got=shown or "contiguous", expected=wanted or "contiguous")


def _shape_term(expr: Any, domain: Domain) -> Term:
    from . import facts
    from .convert import Converter

    try:
        # Extents are mathematics, not machine arithmetic: the checks made on the way are dropped.
        return Converter(facts.Facts("shape"), domain.dims).expr(expr)
    except UnmodelledError as missing:
        check(False, f"shape {expr}", got=str(missing), expected="integer arithmetic on dims")
        raise AssertionError from None  # unreachable: check raised
