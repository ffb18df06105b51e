"""What TileLang's host IR says about a call: the kernels it launches, their arguments, the grid.

The host function ends in ``call_packed("<kernel>", args…, extents…)``. How many extents there are
and which is which stands in the device function's ``tirx.kernel_launch_params``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tileproof.dsl import check

AXES = ("blockIdx.x", "blockIdx.y", "blockIdx.z", "threadIdx.x", "threadIdx.y", "threadIdx.z")
DYNAMIC_SMEM = "tirx.use_dyn_shared_memory"


@dataclass(frozen=True)
class KernelArg:
    """One parameter of a device kernel: a tensor's data pointer or a scalar of the call."""

    name: str
    dtype: str
    is_tensor: bool


@dataclass(frozen=True, eq=False)
class Launch:
    """One kernel launch. Extents are TIR expressions (or ints) over the call's scalar dims.

    `grid` and `block` have three entries; `smem` is dynamic shared memory in bytes.
    """

    kernel: str
    args: tuple[KernelArg, ...]
    grid: tuple[Any, Any, Any]
    block: tuple[Any, Any, Any]
    smem: Any


def launches(host_mod: Any, device_mod: Any) -> tuple[Launch, ...]:
    """Every launch of the host module in program order.

    Raises ContractError for a launch this project does not know how to make (tensor maps, clusters,
    launches under a condition), so that none is ever made wrongly.
    """
    from tilelang import tvm

    tirx = tvm.tirx
    hosts = [f for _, f in host_mod.functions_items()]
    check(len(hosts) == 1, "host functions of one kernel", got=len(hosts), expected=1)
    host = hosts[0]
    maps = host.attrs.get("tma_descriptor_args", {}) if host.attrs else {}
    check(len(maps) == 0, "tensor maps in the host code", got=len(maps), expected="none")
    found: list[Any] = []
    guarded: list[Any] = []

    def is_launch(node: Any) -> bool:
        if not isinstance(node, tirx.Call) or "call_packed" not in str(node.op.name):
            return False
        return not node.args[0].value.startswith("__tvm_")

    def visit(node: Any) -> None:
        if is_launch(node):
            found.append(node)
        if isinstance(node, (tirx.IfThenElse, tirx.For)):
            tirx.stmt_functor.post_order_visit(
                node, lambda inner: guarded.append(inner) if is_launch(inner) else None
            )

    tirx.stmt_functor.post_order_visit(host.body, visit)
    check(not guarded, "launches under a condition or loop", got=len(guarded), expected="none")
    devices = {g.name_hint: f for g, f in device_mod.functions_items()}
    return tuple(_launch(call, devices[call.args[0].value]) for call in found)


def _launch(call: Any, device: Any) -> Launch:
    tags = [str(t) for t in device.attrs["tirx.kernel_launch_params"]]
    unknown = sorted(set(tags) - {*AXES, DYNAMIC_SMEM})
    check(not unknown, "launch parameters", got=unknown, expected=f"among {(*AXES, DYNAMIC_SMEM)}")
    values = list(call.args[1:])
    count = len(device.params)
    check(len(values) == count + len(tags), "launch arguments", got=len(values), expected=count)
    args = []
    for value, parameter in zip(values, device.params, strict=False):
        kind = type(value).__name__
        check(kind == "Var", "kernel argument", got=kind, expected="a tensor or a scalar dim")
        is_tensor = str(parameter.dtype) == "handle"
        args.append(KernelArg(str(value.name), str(parameter.dtype), is_tensor))
    extents = dict(zip(tags, values[count:], strict=True))
    grid = tuple(extents.get(a, 1) for a in AXES[:3])
    block = tuple(extents.get(a, 1) for a in AXES[3:])
    kernel = str(call.args[0].value)
    return Launch(kernel, tuple(args), grid, block, extents.get(DYNAMIC_SMEM, 0))


def evaluate(expr: Any, sizes: Mapping[str, int]) -> int:
    """Value of an integer TIR expression at concrete sizes."""
    return int(_fold(expr, lambda name: sizes[name], _PYTHON))


def to_c(expr: Any) -> str:
    """The expression as C++ over ``int64_t`` variables named like the dims (all non-negative)."""
    return str(_fold(expr, str, _C))


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


def _fold(expr: Any, variable: Callable[[str], Any], table: _Binary) -> Any:
    if isinstance(expr, int):
        return expr
    kind = type(expr).__name__
    if kind == "IntImm":
        return int(expr.value)
    if kind == "Var":
        return variable(str(expr.name))
    if kind == "Cast":
        return _fold(expr.value, variable, table)
    check(kind in table, "launch extent", got=f"{kind} in {expr}", expected="integer arithmetic")
    return table[kind](_fold(expr.a, variable, table), _fold(expr.b, variable, table))
