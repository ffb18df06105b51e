"""A kernel of our own before the op's: it refuses index tensors that break their contract.

A proof assumes ``0 <= idx <= T-1`` wherever an op declares it; what the host cannot see is checked
on the device, in stream order. A broken contract stops the stream like any failed device assertion,
before the op reads anything through the index.
"""

from __future__ import annotations

from tileproof.dsl import BoundTensor, Specialization, check
from tileproof.dsl.expression import to_c

from .host import PlannedLaunch

_THREADS = 256
_MOST_BLOCKS = 1024
_TYPES = {"i8": "signed char", "u8": "unsigned char", "i32": "int", "i64": "long long"}


def kernel(spec: Specialization) -> tuple[str, PlannedLaunch] | None:
    """CUDA text and launch of the check, None for an op without element contracts.

    Raises ContractError for a contract on elements that are no integers.
    """
    checked = [(i, a) for i, a in enumerate(spec.args) if a.values is not None]
    if not checked:
        return None
    for _, a in checked:
        integers = ", ".join(_TYPES)
        where = f"{spec.op.name}: element contract of {a.name}"
        check(a.dtype.name in _TYPES, where, got=a.dtype.name, expected=f"one of {integers}")
    name = f"{spec.symbol}_elements"
    letters = list(spec.op.dynamic)
    parameters = [f"const {_TYPES[a.dtype.name]}* __restrict__ in_{a.name}" for _, a in checked]
    parameters += [f"long long {letter}" for letter in letters]
    # without the 1, ptxas spills a register around printf on sm_100a
    head = f'extern "C" __global__ void __launch_bounds__({_THREADS}, 1) {name}'
    loops = [line for _, a in checked for line in _loop(spec, a)]
    text = "\n".join(["", f"{head}({', '.join(parameters)}) {{", *loops, "}", ""])
    blocks = [f"(({_count(a)}) + {_THREADS - 1}) / {_THREADS}" for _, a in checked]
    most = blocks[0]
    for other in blocks[1:]:
        most = f"std::max<int64_t>({most}, {other})"
    launch = PlannedLaunch(
        kernel=name,
        parameters=(*(("tensor", i) for i, _ in checked), *(("int64", n) for n in letters)),
        grid=(f"std::min<int64_t>({most}, {_MOST_BLOCKS})", "1", "1"),
        block=(_THREADS, 1, 1),
        smem=0,
        optional=True,
    )
    return text, launch


def _count(a: BoundTensor) -> str:
    return " * ".join(f"{n}LL" if isinstance(n, int) else n for n in a.shape)


def _loop(spec: Specialization, a: BoundTensor) -> list[str]:
    assert a.values is not None
    names = {n: n if n in spec.op.dynamic else f"{spec.dims[n]}LL" for n in spec.op.dims}
    lo, hi = (to_c(bound, names) for bound in (a.values.lo, a.values.hi))
    allowed, words = "lo <= v && v <= hi", f"{a.values.lo} <= v <= {a.values.hi}"
    if a.values.none is not None:
        allowed, words = f"({allowed}) || v == {a.values.none}", f"{words} or {a.values.none}"
    if a.values.monotone:
        row = a.shape[-1]
        allowed = f"({allowed}) && (i % {row} == 0 || in_{a.name}[i - 1] <= v)"
        words += ", not decreasing along a row"
    where = f"{spec.op.name}: {a.name}"
    got = f"{where}: got element %lld = %lld, expected %lld..%lld\\n"
    return [
        "  {",
        f"    const long long lo = {lo}, hi = {hi}, count = {_count(a)};",
        f"    for (long long i = blockIdx.x * {_THREADS}LL + threadIdx.x; i < count;"
        f" i += gridDim.x * {_THREADS}LL) {{",
        f"      const long long v = in_{a.name}[i];",
        f"      if (!({allowed})) {{",
        f'        printf("{got}", i, v, lo, hi);',
        "        device_assert_with_msg("
        f'false, "{where}: got an element outside its contract, expected {words}");',
        "      }",
        *(_twins(a, where) if a.values.distinct else ()),
        "    }",
        "  }",
    ]


def _twins(a: BoundTensor, where: str) -> list[str]:
    """Element i against all that follow it: quadratic, but it needs no memory."""
    assert a.values is not None
    first = "i + 1" if a.values.none is None else f"v == {a.values.none} ? count : i + 1"
    got = f"{where}: got elements %lld and %lld = %lld, expected no two equal\\n"
    return [
        f"      for (long long j = {first}; j < count; ++j) {{",
        f"        if (in_{a.name}[j] != v) continue;",
        f'        printf("{got}", i, j, v);',
        f'        device_assert_with_msg(false, "{where}: got two equal elements, expected none");',
        "      }",
    ]
