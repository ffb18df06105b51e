"""TileLang → TIR at every stage, CUDA text and host IR, for an explicit arch, without a GPU."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tileproof.dsl import Facts, Specialization, arch, check
from tileproof.dsl.facts import ATTRIBUTE

from . import origins
from .hostir import Launch, launches
from .origins import Origin

# Attribute of a prim_func: the pass_configs of the jit function it comes from.
PASS_CONFIGS = "tileproof.pass_configs"

# Architectures for which TileLang writes arithmetic on pairs of float32.
_PAIRS = ("sm_100a", "sm_120a")

# What torch calls the type that these are in memory.
_OTHER_NAMES = {"float8_e4m3": "float8_e4m3fn", "custom[tfloat32]": "float32"}


@dataclass(frozen=True)
class Parameter:
    """One parameter of the source function in signature order.

    Tensors have a `shape` of ints and symbol names (or expression text) and a `dtype`, by torch's
    name; scalars have ``shape is None``. `strides`, in elements, are None for a contiguous tensor.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...] | None
    strides: tuple[int | str, ...] | None = None


@dataclass(frozen=True, eq=False)
class Lowered:
    """One kernel for one architecture, after TileLang and before any CUDA compiler.

    `stages` maps ``"<index>:<pass name>"`` to the IRModule that pass left behind, in order; `facts`
    are those :func:`tileproof.dsl.assume` notes on a kernel. `written` is the CUDA text, None until
    somebody asks for `cuda`. `origin` is where the program defines the kernel, `origins` says it of
    each line of `cuda`; None where it is not known.
    """

    name: str
    arch: str
    source: Any
    written: str | None
    device_mod: Any
    host_mod: Any
    stages: Mapping[str, Any] = field(repr=False)
    spec: Specialization | None = None
    facts: Facts = field(default_factory=Facts)
    origin: Origin | None = None
    origins: tuple[Origin | None, ...] = field(default=(), repr=False)

    @cached_property
    def cuda(self) -> str:
        """The CUDA text."""
        if self.written is not None:
            return self.written
        configs = {} if self.spec is None else self.spec.op.variant(self.arch).pass_configs
        return cuda_text(self.device_mod, self.arch, configs)

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        """The source function's parameters in signature order."""
        return parameters(self.source)

    @cached_property
    def launches(self) -> tuple[Launch, ...]:
        """The kernel launches of one call, in order, as the host IR makes them."""
        return launches(self.host_mod, self.device_mod)


def parameters(prim_func: Any) -> tuple[Parameter, ...]:
    """Signature of a TileLang prim_func; see :class:`Parameter`."""
    out = []
    for p in prim_func.params:
        buffer = prim_func.buffer_map.get(p)
        if buffer is None:
            out.append(Parameter(str(p.name), str(p.dtype), None))
            continue
        strides = None if _is_contiguous(buffer) else _sizes(buffer.strides)
        dtype = _OTHER_NAMES.get(str(buffer.dtype), str(buffer.dtype))
        out.append(Parameter(str(buffer.name), dtype, _sizes(buffer.shape), strides))
    return tuple(out)


def _is_contiguous(buffer: Any) -> bool:
    from tilelang import tvm

    analyzer = tvm.arith.Analyzer()
    expected: Any = 1
    for n, stride in zip(reversed(buffer.shape), reversed(buffer.strides), strict=False):
        if not analyzer.can_prove_equal(stride, expected):
            return False
        expected = expected * n
    return True


def _sizes(expressions: Any) -> tuple[int | str, ...]:
    return tuple(_size(e) for e in expressions)


def _size(expr: Any) -> int | str:
    if _is_int(expr):
        return int(expr)
    return str(getattr(expr, "name", expr))  # as text, a symbol T would be T_1: T is TileLang


def _is_int(expr: Any) -> bool:
    return type(expr).__name__ == "IntImm" or isinstance(expr, int)


def tvm_target(arch_name: str) -> Any:
    """TVM's target of an architecture; a context manager."""
    from tilelang import tvm

    return tvm.target.Target({"kind": "cuda", "arch": arch(arch_name).name})


def lower(
    kernel: Any,
    arch_name: str,
    *,
    pass_configs: Mapping[str, Any] | None = None,
    keep_stages: bool = False,
) -> Lowered:
    """Lower a :class:`Specialization` or a TileLang prim_func for `arch_name`.

    Where the op says that architectures are alike the program is that of the oldest.

    Nothing is compiled and no device is asked. `keep_stages` records the module after every pass
    (the prover reads them); it costs time, so builds leave it off.
    Raises ContractError for an unknown architecture or one the op has no variant for.
    """
    import tilelang
    from tilelang import tvm

    spec = kernel if isinstance(kernel, Specialization) else None
    lowered_for = spec.op.variant(arch_name).lowered_for(arch_name) if spec else arch_name
    target = tvm_target(lowered_for)
    configs = {**(pass_configs or {}), origins.MARK: True}
    if spec is not None:
        configs = {**spec.op.variant(arch_name).pass_configs, **configs}
    stages: dict[str, Any] = {}

    @tvm.instrument.pass_instrument
    class Recorder:
        def run_after_pass(self, mod: Any, info: Any) -> None:
            stages[f"{len(stages):03d}:{info.name}"] = mod

    instruments = [Recorder()] if keep_stages else []
    with target:
        source = spec.prim_func(lowered_for) if spec is not None else kernel
        check(
            isinstance(source, tvm.tirx.PrimFunc),
            "kernel",
            got=type(source).__name__,
            expected="a TileLang prim_func",
        )
        if PASS_CONFIGS in source.attrs:
            configs = {**source.attrs[PASS_CONFIGS], **configs}
            source = source.without_attr(PASS_CONFIGS)
        facts = Facts()
        if ATTRIBUTE in source.attrs:
            facts = Facts.from_dict(json.loads(str(source.attrs[ATTRIBUTE])))
            source = source.without_attr(ATTRIBUTE)
        context = tvm.transform.PassContext(opt_level=3, config=configs, instruments=instruments)
        with context:
            artifact = tilelang.lower(source, target=target)
    text = artifact.kernel_source
    if not same_text(lowered_for, arch_name):
        text = cuda_text(artifact.device_mod, arch_name, configs)
    origin = origins.of_kernel(source)
    cuda, by_line = origins.split(text, origin)
    return Lowered(
        name=str(source.attrs["global_symbol"]),
        arch=arch(arch_name).name,
        source=source,
        written=cuda,
        device_mod=artifact.device_mod,
        host_mod=artifact.host_mod,
        stages=stages,
        spec=spec,
        facts=facts,
        origin=origin,
        origins=by_line,
    )


def same_text(one: str, other: str) -> bool:
    """Whether TileLang writes the same text of a program for two architectures."""
    return (one in _PAIRS) == (other in _PAIRS)


def cuda_text(device_mod: Any, arch_name: str, configs: Mapping[str, Any] | None = None) -> str:
    """CUDA text of a device module as :func:`lower` leaves it, or changed by whoever asks."""
    from tilelang import tvm
    from tilelang.backend.module import create_backend_context
    from tilelang.engine.lower import device_codegen_without_compile

    target = tvm_target(arch_name)
    with target, tvm.transform.PassContext(opt_level=3, config=dict(configs or {})):
        context = create_backend_context(target, None, "auto")
        return str(device_codegen_without_compile(device_mod, context).inspect_source())
