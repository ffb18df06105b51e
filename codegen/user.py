"""A user's kernel as an op of a bundle: declared by its signature and the facts about it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from tileproof.dsl import ALL, Facts, Op, Specialization, Tensor, arch, check, dim
from tileproof.dsl.dtypes import DTYPES
from tileproof.dsl.spec import Values

from .lower import Parameter, lower
from .target import Target, split
from .virtual import written

# Without a fact, the sizes that the int32 scalars TileLang passes can hold.
_ANY = (0, 2**31 - 1)
_NAMES = {d.tilelang: d.name for d in DTYPES.values()}


def specialize(
    target: Target, facts: Facts | Mapping[str, Any] | None = None, arch_name: str = "sm_80"
) -> Specialization:
    """The kernel `target` as an op that a bundle can hold, called like its function.

    Inputs are the tensors it only reads, outputs those it writes, in signature order; the op
    allocates the outputs, whatever was in that memory. `facts` give the domains of sizes and the
    contracts on elements; the launcher checks both. The kernel is lowered once, for `arch_name`.

    Raises ContractError for what an op has not: scalars no tensor shows, tensors that are read and
    written, sizes that are neither numbers nor names.
    """
    lowered = lower(_source(target, arch_name), arch_name)
    known = lowered.facts.updated(Facts.read(facts))
    name = split(target.text)[1]
    scalars = [p.name for p in lowered.parameters if p.shape is None]
    check(not scalars, f"{name}: scalar parameters", got=scalars, expected="tensors only")
    outputs = written(lowered)
    both = sorted(outputs & {*known.inout})
    check(not both, f"{name}: tensors", got=f"{both} read and written", expected="in or out")
    check(bool(outputs), f"{name}: tensors", got="none written", expected="an output")
    tensors = [_tensor(name, p, known, p.name in outputs) for p in lowered.parameters]
    order = sorted(range(len(tensors)), key=lambda i: tensors[i].role == "out")
    letters = {x for t in tensors for x in (*t.shape, *(t.strides or ())) if not x.isdigit()}
    op = Op(
        name,
        args=tuple(tensors[i] for i in order),
        dims={n: _dim(n, known) for n in sorted(letters)},
        doc=f"{name} of {target.file.name}",
        reference=None,
        shapes={},
        order=tuple(order),
        listed=False,
    )
    op.kernel(archs=ALL)(functools.partial(_build, target, lowered.arch))
    return op.specialize()


def _source(target: Target, arch_name: str) -> Any:
    """The prim_func; a factory may ask for the target it is built for."""
    from tilelang import tvm

    with tvm.target.Target({"kind": "cuda", "arch": arch(arch_name).name}):
        return target.resolve()


def _build(target: Target, arch_name: str) -> Any:
    return target.resolve()  # `lower` has set the target


def _tensor(op: str, parameter: Parameter, facts: Facts, is_output: bool) -> Tensor:
    where = f"{op}: {parameter.name}"
    known = parameter.dtype in _NAMES
    check(known, f"{where}.dtype", got=parameter.dtype, expected=f"one of {', '.join(_NAMES)}")
    shape = _letters(where, parameter.shape or ())
    strides = None if parameter.strides is None else _letters(where, parameter.strides)
    role = "out" if is_output else "in"
    values = None
    if parameter.name in facts.values and not is_output:
        lo, hi = facts.values[parameter.name]
        none = facts.none.get(parameter.name)
        monotone, distinct = (parameter.name in f for f in (facts.monotone, facts.distinct))
        values = Values(str(lo), str(hi), none, monotone, distinct)
    once = "once" if facts.written.get(parameter.name) == "once" else "all"
    tensor = Tensor(
        parameter.name, shape, _NAMES[parameter.dtype], role, values=values, strides=strides
    )
    tensor = dataclasses.replace(tensor, align=facts.align.get(parameter.name, tensor.align))
    return dataclasses.replace(tensor, written=once) if is_output else tensor


def _letters(where: str, sizes: tuple[int | str, ...]) -> tuple[str, ...]:
    wrong = [s for s in sizes if isinstance(s, str) and not s.isidentifier()]
    check(not wrong, f"{where}: sizes", got=wrong, expected="numbers or names")
    return tuple(map(str, sizes))


def _dim(name: str, facts: Facts) -> Any:
    lo, hi = facts.dims.get(name, _ANY)
    return dim(max(lo, 0), hi, multiple=facts.multiples.get(name, 1), batch=name in facts.batch)
