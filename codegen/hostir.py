"""What TileLang's host IR says about a call: the kernels it launches, their arguments, the grid.

The host function ends in ``call_packed("<kernel>", args…, extents…)``. How many extents there are
and which is which stands in the device function's ``tirx.kernel_launch_params``. Tensor maps are
encoded by calls before it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tileproof.dsl import check

AXES = ("blockIdx.x", "blockIdx.y", "blockIdx.z", "threadIdx.x", "threadIdx.y", "threadIdx.z")
CLUSTER_AXES = ("tir.cluster_dim_x", "tir.cluster_dim_y", "tir.cluster_dim_z")
DYNAMIC_SMEM = "tirx.use_dyn_shared_memory"
_ENCODE = "__tvm_tensormap_create_"


@dataclass(frozen=True, eq=False)
class TensorMap:
    """How the host encodes a tensor map: cuTensorMapEncodeTiled's arguments, or Im2col's.

    `fields` are TIR expressions by the names ``tileproof.runtime.virtual.TensorMap`` gives them.
    """

    tensor: str
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class KernelArg:
    """One parameter of a device kernel: a tensor's data pointer, a tensor map, or a scalar."""

    name: str
    dtype: str
    is_tensor: bool
    tensor_map: TensorMap | None = None


@dataclass(frozen=True, eq=False)
class Launch:
    """One kernel launch. Extents are TIR expressions (or ints) over the call's scalar dims.

    `grid`, `block` and `cluster` have three entries; `smem` is dynamic shared memory in bytes.
    """

    kernel: str
    args: tuple[KernelArg, ...]
    grid: tuple[Any, Any, Any]
    block: tuple[Any, Any, Any]
    smem: Any
    cluster: tuple[Any, Any, Any] = (1, 1, 1)
    cooperative: bool = False

    def require_single_blocks(self) -> None:
        """Raises ContractError for a launch of clusters or of blocks that wait for each other."""
        sizes = [to_c(extent) for extent in self.cluster]
        single = sizes == ["1", "1", "1"]
        check(single, f"{self.kernel}: blocks in a cluster", got=sizes, expected="one")
        kind = "cooperative" if self.cooperative else "plain"
        check(not self.cooperative, f"{self.kernel}: launch", got=kind, expected="a plain one")


def launches(host_mod: Any, device_mod: Any) -> tuple[Launch, ...]:
    """Every launch of the host module in program order.

    Raises ContractError for a launch this project does not know how to make (under a condition,
    with arguments that are neither tensors nor dims), so that none is ever made wrongly.
    """
    from tilelang import tvm

    tirx = tvm.tirx
    hosts = [f for _, f in host_mod.functions_items()]
    check(len(hosts) == 1, "host functions of one kernel", got=len(hosts), expected=1)
    found: list[Any] = []
    maps: dict[str, TensorMap] = {}
    tensors: dict[str, str] = {}
    guarded: list[Any] = []

    def callee(node: Any) -> str:
        if not isinstance(node, tirx.Call) or "call_packed" not in str(node.op.name):
            return ""
        return str(node.args[0].value)

    def matters(node: Any) -> bool:
        name = callee(node)
        return name.startswith(_ENCODE) or (name != "" and not name.startswith("__tvm_"))

    def visit(node: Any) -> None:
        if isinstance(node, tirx.Bind) and (handle := _data_of(node.value)) is not None:
            tensors[str(node.var.name)] = handle.removesuffix("_handle")
        if callee(node).startswith(_ENCODE):
            name = str(node.args[1].name)
            check(name not in maps, "tensor map", got=f"{name} encoded twice", expected="once")
            maps[name] = _tensor_map(callee(node), list(node.args[2:]))
        elif matters(node):
            found.append(node)
        if isinstance(node, (tirx.IfThenElse, tirx.For)):
            tirx.stmt_functor.post_order_visit(
                node, lambda inner: guarded.append(inner) if matters(inner) else None
            )

    tirx.stmt_functor.post_order_visit(hosts[0].body, visit)
    check(not guarded, "launches under a condition or loop", got=len(guarded), expected="none")
    devices = {g.name_hint: f for g, f in device_mod.functions_items()}
    return tuple(_launch(call, devices[call.args[0].value], maps, tensors) for call in found)


_DATA = 1  # the field of a DLTensor that tvm_struct_get calls so


def _data_of(value: Any) -> str | None:
    """The handle whose data pointer an expression reads; the pointer may bear a view's name."""
    if type(value).__name__ != "Call" or str(value.op.name) != "tirx.tvm_struct_get":
        return None
    handle, _, field = value.args
    return str(handle.name) if int(field) == _DATA else None


def _tensor_map(encoder: str, values: list[Any]) -> TensorMap:
    """Names the arguments of an encoding call, which come in the order of the driver's function."""
    rank = int(values[1].value)
    base = type(values[2]).__name__
    check(base == "Var", "address of a tensor map", got=base, expected="a tensor of the call")
    lists = {"extents": rank, "strides": rank}
    if encoder == f"{_ENCODE}im2col":
        lists |= {"steps": rank, "lower": rank - 2, "upper": rank - 2, "pixels": 0, "channels": 0}
    else:
        check(encoder == f"{_ENCODE}tiled", "tensor map", got=encoder, expected="tiled or im2col")
        lists |= {"box": rank, "steps": rank}
    lists |= dict.fromkeys(("interleave", "swizzle", "l2", "fill"), 0)
    fields: dict[str, Any] = {"type": values[0]}
    rest = iter(values[3:])
    for name, count in lists.items():
        fields[name] = tuple(next(rest) for _ in range(count)) if count else next(rest)
    left = len(list(rest))
    check(left == 0, f"{encoder}: arguments left over", got=left, expected=0)
    # TileLang counts the innermost dimension's stride too; the driver does not.
    fields["strides"] = fields["strides"][1:]
    return TensorMap(str(values[2].name), fields)


def _launch(
    call: Any, device: Any, maps: Mapping[str, TensorMap], tensors: Mapping[str, str]
) -> Launch:
    tags = [str(t) for t in device.attrs["tirx.kernel_launch_params"]]
    known = (*AXES, *CLUSTER_AXES, DYNAMIC_SMEM)
    unknown = sorted(set(tags) - set(known))
    check(not unknown, "launch parameters", got=unknown, expected=f"among {known}")
    values = list(call.args[1:])
    count = len(device.params)
    check(len(values) == count + len(tags), "launch arguments", got=len(values), expected=count)
    args = []
    for value, parameter in zip(values, device.params, strict=False):
        kind = type(value).__name__
        check(kind == "Var", "kernel argument", got=kind, expected="a tensor or a scalar dim")
        name = str(value.name)
        is_tensor = str(parameter.dtype) == "handle" and name not in maps
        known_as = tensors.get(name, name) if is_tensor else name
        args.append(KernelArg(known_as, str(parameter.dtype), is_tensor, maps.get(name)))
    extents = dict(zip(tags, values[count:], strict=True))
    x, y, z, *block = (extents.get(a, 1) for a in AXES)
    cluster = tuple(extents.get(a, 1) for a in CLUSTER_AXES)
    return Launch(
        kernel=str(call.args[0].value),
        args=tuple(args),
        grid=(x, y, z),
        block=(block[0], block[1], block[2]),
        smem=extents.get(DYNAMIC_SMEM, 0),
        cluster=(cluster[0], cluster[1], cluster[2]),
        cooperative=bool(device.attrs.get("use_cooperative_groups", 0)),
    )


def evaluate(expr: Any, sizes: Mapping[str, int]) -> int:
    """Value of an integer TIR expression at concrete sizes."""
    return int(fold(expr, lambda name: sizes[name], _PYTHON))


def to_c(expr: Any) -> str:
    """The expression as C++ over ``int64_t`` variables named like the dims (all non-negative)."""
    return str(fold(expr, str, _C))


_Binary = Mapping[str, Callable[[Any, Any], Any]]

_PYTHON: _Binary = {
    "Add": lambda a, b: a + b,
    "Sub": lambda a, b: a - b,
    "Mul": lambda a, b: a * b,
    "FloorDiv": lambda a, b: a // b,
    "FloorMod": lambda a, b: a % b,
    "Min": min,
    "Max": max,
}
# Division is exact on the non-negative extents it is used for, so C's truncation agrees with floor.
_C: _Binary = {
    "Add": lambda a, b: f"({a} + {b})",
    "Sub": lambda a, b: f"({a} - {b})",
    "Mul": lambda a, b: f"({a} * {b})",
    "FloorDiv": lambda a, b: f"({a} / {b})",
    "FloorMod": lambda a, b: f"({a} % {b})",
    "Min": lambda a, b: f"std::min<int64_t>({a}, {b})",
    "Max": lambda a, b: f"std::max<int64_t>({a}, {b})",
}


def fold(
    expr: Any,
    variable: Callable[[str], Any],
    table: _Binary,
    number: Callable[[int], Any] = lambda n: n,
) -> Any:
    """The value of an extent in another arithmetic: `table` maps TIR's names of operations.

    Raises ContractError for anything else than integer arithmetic on dims.
    """
    if isinstance(expr, int):
        return number(expr)
    kind = type(expr).__name__
    if kind == "IntImm":
        return number(int(expr.value))
    if kind == "Var":
        return variable(str(expr.name))
    if kind == "Cast":
        return fold(expr.value, variable, table, number)
    check(kind in table, "launch extent", got=f"{kind} in {expr}", expected="integer arithmetic")
    return table[kind](fold(expr.a, variable, table, number), fold(expr.b, variable, table, number))
