"""What a launch gives a thread, from the contract both routes share: sizes, tensors, the grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tileproof.codegen import hostir
from tileproof.codegen.hostir import Launch, TensorMap
from tileproof.verify.domain import Domain, TensorFacts
from tileproof.verify.terms import Term as Size

from . import bits
from .bits import Term
from .execute import Inputs, Region

_ELEMENT_BYTES = (1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4)
_MAX_GRID = {"x": 2**31 - 1, "y": 65535, "z": 65535}


@dataclass
class Assumed:
    """The sizes as terms, what holds for them, and what holds for values read from tensors.

    `about` grows while a thread is executed: each value loaded from an index tensor gets its facts.
    """

    dims: dict[str, Term]
    facts: list[Term]
    about: dict[Term, list[Term]]


def assume(domain: Domain) -> Assumed:
    """The domain in bit-vectors of 64 bits; a multiple of m is m times another number."""
    dims = {}
    for name, symbol in domain.dims.items():
        lo, hi, m = int(symbol.lo.value), int(symbol.hi.value), domain.multiples.get(name, 1)
        if m == 1:
            dims[name] = bits.var(name, 64, (lo, hi))
        else:
            dims[name] = bits.scale(bits.var(f"{name}/{m}", 64, (-(-lo // m), hi // m)), m)
    facts = [size(f, dims) for t in domain.tensors.values() for f in t.apart()]
    return Assumed(dims, facts, {})


def _floor(op: str) -> Callable[[Term, Term], Term]:
    return lambda a, b: bits.divide(op, a, b)


_SIZES: dict[str, Callable[..., Term]] = {
    "add": bits.add,
    "sub": bits.sub,
    "mul": bits.mul,
    "div": _floor("udiv"),
    "mod": _floor("urem"),
    "min": lambda a, b: bits.ite(bits.less(a, b), a, b),
    "max": lambda a, b: bits.ite(bits.less(a, b), b, a),
    "le": lambda a, b: bits.negate(bits.less(b, a)),
}


def size(term: Size, dims: dict[str, Term]) -> Term:
    """A size of the contract in bit-vectors. Raises KeyError for an operation it has no word for.

    Sizes are mathematics: whoever writes one whose value needs more than 63 bits is refused.
    """
    if term.op == "const":
        return bits.const(term.value, 64)
    if term.op == "var":
        return dims[term.value.name]
    args = [size(a, dims) for a in term.args]
    if term.op in ("div", "mod") and args[0].range[0] < 0:
        raise KeyError(f"{term.op} of a size that may be negative")
    out = _SIZES[term.op](*args)
    if not bits.fits(out):
        raise KeyError("a size of more than 63 bits")
    return out


def inputs(launch: Launch, domain: Domain, assumed: Assumed) -> tuple[Inputs, list[Term]]:
    """What a thread of a launch sees, and the facts of its place in the grid.

    Raises KeyError for an extent that is not understood.
    """
    special, facts = _place(launch, assumed.dims)
    params: list[Term] = []
    regions: dict[Term, Region] = {}
    boxes: dict[int, Term] = {}
    for arg in launch.args:
        if arg.tensor_map is not None:
            if (box := _box(arg.tensor_map, assumed.dims)) is not None:
                boxes[len(params)] = box
            params.append(bits.var(f"map {arg.name}", 64))
        elif arg.is_tensor:
            tensor = domain.tensors[arg.name]
            zeros = (tensor.align & -tensor.align).bit_length() - 1
            base = bits.var(f"&{arg.name}", 64, (0, 1 << 47), zeros)
            regions[base] = _region(tensor, assumed)
            params.append(base)
        else:
            width = int(arg.dtype.lstrip("uint").split("x")[0])
            params.append(bits.trunc(assumed.dims[arg.name], width))
    smem = _extent(launch.smem, assumed.dims)
    return Inputs(params, special, regions, smem, boxes), facts


def _box(tensor_map: TensorMap, dims: dict[str, Term]) -> Term | None:
    """Bytes of a tiled map's box: every `step`-th element of each dimension. None for im2col.

    Types are numbered as the driver's ``CUtensorMapDataType``; packed ones (above 12) are not read.
    """
    kind = bits.number(_extent(tensor_map.fields["type"], dims))
    if "box" not in tensor_map.fields or kind is None or kind not in range(len(_ELEMENT_BYTES)):
        return None
    total = bits.const(_ELEMENT_BYTES[kind], 64)
    for extent, step in zip(tensor_map.fields["box"], tensor_map.fields["steps"], strict=True):
        n, every = (_extent(e, dims) for e in (extent, step))
        up = bits.add(n, bits.sub(every, bits.const(1, 64)))
        total = bits.mul(total, bits.divide("udiv", up, every))
    return total


def _extent(expr: Any, dims: dict[str, Term]) -> Term:
    table = {
        "Add": bits.add,
        "Sub": bits.sub,
        "Mul": bits.mul,
        "FloorDiv": _SIZES["div"],
        "FloorMod": _SIZES["mod"],
        "Min": _SIZES["min"],
        "Max": _SIZES["max"],
    }
    return hostir.fold(expr, lambda name: dims[name], table, lambda n: bits.const(n, 64))


def _place(launch: Launch, dims: dict[str, Term]) -> tuple[dict[str, Term], list[Term]]:
    special: dict[str, Term] = {}
    facts: list[Term] = []
    linear, stride = bits.const(0, 32), 1
    for axis, grid, block in zip("xyz", launch.grid, launch.block, strict=True):
        blocks, threads = _extent(grid, dims), _extent(block, dims)
        count = bits.number(threads)
        if count is None:
            raise KeyError("a number of threads that depends on sizes")
        last = min(blocks.range[1], _MAX_GRID[axis]) - 1
        tid = bits.var(f"thread.{axis}", 32, (0, count - 1))
        ctaid = bits.var(f"block.{axis}", 32, (0, max(0, last)))
        special[f"%tid.{axis}"] = tid if count > 1 else bits.const(0, 32)
        special[f"%ctaid.{axis}"] = ctaid if last != 0 else bits.const(0, 32)
        special[f"%ntid.{axis}"] = bits.const(count, 32)
        special[f"%nctaid.{axis}"] = bits.trunc(bits.clamp(blocks, 1), 32)  # a block runs
        facts.append(bits.less(bits.extend(special[f"%ctaid.{axis}"], 64, True), blocks))
        linear = bits.add(linear, special[f"%tid.{axis}"], stride)
        stride *= count
    special["%laneid"] = bits.and_(linear, bits.const(31, 32))
    return special, facts


def _region(tensor: TensorFacts, assumed: Assumed) -> Region:
    from tilelang import tvm

    dims = assumed.dims
    shape = [size(n, dims) for n in tensor.shape]
    one = bits.const(1, 64)
    if tensor.strides is None:
        elements = one
        for n in shape:
            elements = bits.mul(elements, n)
    else:
        elements, empty = one, bits.false()
        for n, stride in zip(shape, tensor.strides, strict=True):
            elements = bits.add(elements, bits.mul(bits.sub(n, one), size(stride, dims)))
            empty = bits.any_((empty, bits.negate(bits.less(bits.const(0, 64), n))))
        elements = bits.ite(empty, bits.const(0, 64), elements)
    width = int(tvm.DataType(tensor.dtype).bits) * int(tvm.DataType(tensor.dtype).lanes)
    extent = bits.scale(elements, width // 8) if width >= 8 else None
    if extent is None:
        extent = bits.shr(bits.scale(elements, width), 3, True)
    if not bits.fits(extent):
        raise KeyError(f"{tensor.name} has more than 2^63 bytes")
    indexed = tensor.values is not None and tensor.written is None and not tensor.inout
    if indexed and tensor.dtype.startswith("int"):
        return Region(tensor.name, extent, tensor.align, _elements(tensor, width, assumed))
    return Region(tensor.name, extent, tensor.align)


def _elements(tensor: TensorFacts, declared: int, assumed: Assumed) -> Callable[[str, int], Term]:
    assert tensor.values is not None
    lo, hi = (size(t, assumed.dims) for t in (tensor.values.lo, tensor.values.hi))
    none = tensor.values.none

    def element(name: str, width: int) -> Term:
        if width != declared:
            return bits.var(f"~{name}", width)
        least, most = lo.range[0], hi.range[1]
        if none is not None:
            least, most = min(least, none), max(most, none)
        v = bits.var(name, width, (least, most))
        wide = bits.extend(v, 64, True)
        kept = bits.all_((bits.negate(bits.less(wide, lo)), bits.negate(bits.less(hi, wide))))
        if none is not None:
            kept = bits.any_((kept, bits.eq(wide, bits.const(none, 64))))
        assumed.about[v] = [kept]
        return v

    return element
