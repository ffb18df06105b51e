"""The native launchers of a bundle: tables of facts in C++, read by ``runtime/csrc/launcher.cpp``.

What a launcher checks comes from the `Op` and what it launches from TileLang's host IR, so there is
nothing to keep in step by hand.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tileproof import runtime
from tileproof.dsl import BoundTensor, DType, Specialization, check, layout
from tileproof.runtime.cache import cache_dir, locked, replacing

from .hostir import TensorMap, to_c
from .lower import Lowered
from .toolchain import cxx, run, versions

CSRC = Path(runtime.__file__).parent / "csrc"
_SCALARS = {"int32": "kInt32", "int64": "kInt64"}
_PARAMETERS = {**_SCALARS, "tensor": "kPointer", "map": "kMap"}
_CLUSTER = 8  # blocks that every device with clusters takes
_LIMITS = {"tensors": 24, "dynamic dims": 12, "kernel parameters": 32, "launches": 4}
_LIMITS["tensor maps"] = 8
_FLAGS = ["-std=c++17", "-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-Wall"]
_FLAGS += ["-Wl,--build-id=none", "-Wl,--as-needed", "-Wl,--strip-all"]


@dataclass(frozen=True)
class PlannedMap:
    """A tensor map as plain data: `tensor` by its index in the op's arguments, the other arguments
    of cuTensorMapEncodeTiled or Im2col as C++ expressions over letters, lists as tuples."""

    tensor: int
    fields: Mapping[str, str | tuple[str, ...]]


@dataclass(frozen=True)
class PlannedLaunch:
    """One launch as plain data.

    `parameters` in the device kernel's order: ``("tensor", index in the op's arguments)``,
    ``("int32" | "int64", letter)`` or ``("map", index in `maps`)``. `grid` are C++ expressions over
    letters; `smem` in bytes. A `cooperative` launch has all its blocks at once.
    An `optional` launch only checks arguments; who loads a bundle may leave it out.
    """

    kernel: str
    parameters: tuple[tuple[str, int | str], ...]
    grid: tuple[str, str, str]
    block: tuple[int, int, int]
    smem: int
    optional: bool = False
    cluster: tuple[int, int, int] = (1, 1, 1)
    cooperative: bool = False
    maps: tuple[PlannedMap, ...] = ()

    @property
    def threads(self) -> int:
        """Threads of one block."""
        return self.block[0] * self.block[1] * self.block[2]

    def to_json(self) -> dict[str, Any]:
        """As plain data; :meth:`from_json` reads it back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PlannedLaunch:
        """The inverse of :meth:`to_json`, for data that went through JSON."""
        maps = []
        for entry in data["maps"]:
            fields = {k: v if isinstance(v, str) else tuple(v) for k, v in entry["fields"].items()}
            maps.append(PlannedMap(entry["tensor"], fields))
        lists: dict[str, Any] = {k: tuple(data[k]) for k in ("grid", "block", "cluster")}
        lists["parameters"] = tuple((str(kind), value) for kind, value in data["parameters"])
        return cls(**{**data, **lists, "maps": tuple(maps)})


def plan(lowered: Lowered) -> tuple[PlannedLaunch, ...]:
    """The launches of one call of a lowered specialization.

    Raises ContractError when the kernel's signature is not the op's, or when a launch needs more
    than launchers do.
    """
    spec = lowered.spec
    assert spec is not None, "only specializations have a declaration to check against"
    indices = _match_signature(lowered, spec)
    return tuple(_planned(launch, indices, spec) for launch in lowered.launches)


def _match_signature(lowered: Lowered, spec: Specialization) -> dict[str, int]:
    """Position in the op's arguments by the kernel's own parameter names."""
    where = f"{spec.op.name} on {lowered.arch}"
    count = len(spec.args)
    check(
        len(lowered.parameters) == count,
        f"{where}: kernel parameters",
        got=len(lowered.parameters),
        expected=count,
    )
    indices = {}
    parameters = [lowered.parameters[i] for i in spec.op.order or range(count)]
    for i, (parameter, tensor) in enumerate(zip(parameters, spec.args, strict=True)):
        got = _layout(parameter.dtype, parameter.shape, parameter.strides)
        expected = _layout(
            tensor.dtype.tilelang, map(layout.expression, tensor.shape), tensor.strides
        )
        check(
            got == expected,
            f"{where}: kernel parameter {parameter.name}",
            got=got,
            expected=f"{expected} as the op's {tensor.name}",
        )
        indices[parameter.name] = i
    return indices


def _layout(element: str, shape: Any, strides: Any) -> str:
    """``bfloat16[M, 96] strides [P, 1]``"""
    words = [", ".join(map(str, sizes)) for sizes in (shape or (), strides or ())]
    return f"{element}[{words[0]}]" + (f" strides [{words[1]}]" if words[1] else "")


def _planned(launch: Any, indices: Mapping[str, int], spec: Specialization) -> PlannedLaunch:
    where = f"{spec.op.name}: {launch.kernel}"
    parameters: list[tuple[str, int | str]] = []
    maps: list[PlannedMap] = []
    for argument in launch.args:
        if argument.tensor_map is not None:
            parameters.append(("map", len(maps)))
            maps.append(_planned_map(where, argument.tensor_map, indices))
            continue
        if argument.is_tensor:
            known = argument.name in indices
            check(known, f"{where}: pointer", got=argument.name, expected="one of the op's tensors")
            parameters.append(("tensor", indices[argument.name]))
            continue
        known = argument.name in spec.op.dynamic
        check(known, f"{where}: scalar", got=argument.name, expected="one of the op's dims")
        kind = str(argument.dtype)
        check(kind in _SCALARS, f"{where}: scalar {argument.name}", got=kind, expected="an integer")
        most = spec.op.dims[argument.name].hi
        fits = kind == "int64" or most < 2**31
        check(fits, f"{where}: dim {argument.name}", got=most, expected="a domain that fits int32")
        parameters.append((kind, argument.name))
    x, y, z = (_constant(where, "block", extent) for extent in launch.block)
    cx, cy, cz = (_constant(where, "cluster", extent) for extent in launch.cluster)
    gx, gy, gz = (to_c(extent) for extent in launch.grid)
    size = cx * cy * cz
    check(
        size <= _CLUSTER, f"{where}: blocks in a cluster", got=size, expected=f"at most {_CLUSTER}"
    )
    return PlannedLaunch(
        kernel=launch.kernel,
        parameters=tuple(parameters),
        grid=(gx, gy, gz),
        block=(x, y, z),
        smem=_constant(where, "dynamic shared memory", launch.smem),
        cluster=(cx, cy, cz),
        cooperative=launch.cooperative,
        maps=tuple(maps),
    )


def _planned_map(where: str, encoded: TensorMap, indices: Mapping[str, int]) -> PlannedMap:
    known = encoded.tensor in indices
    check(known, f"{where}: tensor map", got=encoded.tensor, expected="one of the op's tensors")
    fields: dict[str, str | tuple[str, ...]] = {
        name: tuple(map(to_c, value)) if isinstance(value, tuple) else to_c(value)
        for name, value in encoded.fields.items()
    }
    return PlannedMap(indices[encoded.tensor], fields)


def _constant(where: str, what: str, expr: Any) -> int:
    """Block and shared memory are opted in to when a kernel is loaded, before any size is known."""
    text = str(to_c(expr))
    check(text.isdigit(), f"{where}: {what}", got=text, expected="a constant")
    return int(text)


@dataclass(frozen=True)
class HostKernel:
    """One specialization and its distinct plans; architectures refer to a plan by its index."""

    spec: Specialization
    plans: tuple[tuple[PlannedLaunch, ...], ...]


def generate(kernels: Sequence[HostKernel]) -> str:
    """The C++ of one bundle's launchers, in the order given."""
    parts = ["// Generated by tileproof.", "#include <algorithm>", '#include "launcher.h"', ""]
    parts += ["using namespace tileproof;", ""]
    for number, kernel in enumerate(kernels):
        parts += [f"namespace k{number} {{", *_tables(kernel), "}"]
        parts += [f"TILEPROOF_BIND({kernel.spec.symbol}, k{number}::kernel)", ""]
    return "\n".join(parts)


def _tables(kernel: HostKernel) -> list[str]:
    spec = kernel.spec
    tensors = spec.args
    letters = list(spec.op.dynamic)
    _limit(spec, "tensors", len(tensors))
    _limit(spec, "dynamic dims", len(letters))
    lines = []
    rows = []
    for i, (declared, tensor) in enumerate(zip(spec.op.args, tensors, strict=True)):
        axes = _sizes(declared.shape, tensor.shape, letters)
        steps = _sizes(declared.strides or (), tensor.strides or (), letters)
        lines += [f"const Size {n}{i}[] = {{{v}}};" for n, v in (("a", axes), ("s", steps)) if v]
        tables = [f"{n}{i}" if v else "nullptr" for n, v in (("a", axes), ("s", steps))]
        rows.append(_tensor(tensor, *tables))
    lines.append(f"const Tensor tensors[] = {{{', '.join(rows)}}};")
    domains = ", ".join(
        f'{{"{name}", {d.lo}, {d.hi}, {d.multiple}}}' for name, d in spec.op.dynamic.items()
    )
    if letters:
        lines.append(f"const Letter letters[] = {{{domains}}};")
    plans = []
    for p, launches in enumerate(kernel.plans):
        _limit(spec, "launches", len(launches))
        rows = []
        for j, launch in enumerate(launches):
            _limit(spec, "kernel parameters", len(launch.parameters))
            _limit(spec, "tensor maps", len(launch.maps))
            lines += _launch_tables(launch, f"{p}_{j}", letters)
            rows.append(_launch(launch, f"{p}_{j}"))
        lines.append(f"const Launch launches{p}[] = {{{', '.join(rows)}}};")
        plans.append(f"{{{len(launches)}, launches{p}}}")
    lines.append(f"const Plan plans[] = {{{', '.join(plans)}}};")
    lines.append(
        f'const Kernel kernel = {{"{spec.op.name}", {len(tensors)}, tensors, {len(letters)}, '
        f"{'letters' if letters else 'nullptr'}, {len(plans)}, plans}};"
    )
    return lines


def _limit(spec: Specialization, what: str, got: int) -> None:
    """Launchers keep a call on the stack, in arrays of these sizes (launcher.h)."""
    most = _LIMITS[what]
    check(got <= most, f"{spec.op.name}: {what}", got=got, expected=f"at most {most}")


def _sizes(declared: Sequence[str], bound: Sequence[int | str], letters: Sequence[str]) -> str:
    """Initialisers of `Size`, for the axes or the strides of one tensor."""
    rows = []
    for letter, size in zip(declared, bound, strict=True):
        label = "nullptr" if letter.isdigit() else f'"{letter}"'
        if isinstance(size, int):
            rows.append(f"{{{label}, {size}, -1}}")
        else:
            dim = layout.letter_of(size)
            per = size.removeprefix(dim).removeprefix("/") or 0
            rows.append(f"{{{label}, {per}, {letters.index(dim)}}}")
    return ", ".join(rows)


def _tensor(tensor: BoundTensor, axes: str, strides: str) -> str:
    written = "true" if tensor.role != "in" else "false"
    return (
        f'{{"{tensor.name}", {_dlpack(tensor.dtype)}, {tensor.align}, {written}, '
        f"{len(tensor.shape)}, {axes}, {strides}}}"
    )


def _dlpack(element: DType) -> str:
    whole = element.bits % 8 == 0
    check(whole, "tensor element", got=element.name, expected="whole bytes (pass packed pairs)")
    return f"{{{element.code}, {element.bits}, 1}}"


def _launch(launch: PlannedLaunch, suffix: str) -> str:
    """The initialiser of a `Launch`."""
    extents = [", ".join(map(str, sizes)) for sizes in (launch.cluster, launch.block)]
    flags = [str(flag).lower() for flag in (launch.optional, launch.cooperative)]
    maps = f"maps{suffix}" if launch.maps else "nullptr"
    return (
        f'{{"{launch.kernel}", {len(launch.parameters)}, parameters{suffix}, grid{suffix}, '
        f"{{{extents[0]}}}, {{{extents[1]}}}, {launch.smem}, {', '.join(flags)}, "
        f"{len(launch.maps)}, {maps}}}"
    )


def _launch_tables(launch: PlannedLaunch, suffix: str, letters: Sequence[str]) -> list[str]:
    rows = []
    for kind, value in launch.parameters:
        place = letters.index(str(value)) if kind in _SCALARS else value
        rows.append(f"{{Parameter::{_PARAMETERS[kind]}, {place}}}")
    names = [f"[[maybe_unused]] const int64_t {n} = dims[{i}];" for i, n in enumerate(letters)]
    grid = " ".join(f"grid[{i}] = {extent};" for i, extent in enumerate(launch.grid))
    lines = [f"const Parameter parameters{suffix}[] = {{{', '.join(rows)}}};"]
    lines += _function(f"grid{suffix}", "int64_t* grid", names, [grid])
    rows = []
    for m, encoded in enumerate(launch.maps):
        rows.append(f"{{{encoded.tensor}, map{suffix}_{m}}}")
        body = [f"map->rank = {len(encoded.fields['extents'])};"]
        for name, held in encoded.fields.items():
            if isinstance(held, str):
                body.append(f"map->{name} = {held};")
            else:
                body += [f"map->{name}[{i}] = {text};" for i, text in enumerate(held)]
        lines += _function(f"map{suffix}_{m}", "tp_tensor_map* map", names, body)
    if rows:
        lines.append(f"const Map maps{suffix}[] = {{{', '.join(rows)}}};")
    return lines


def _function(name: str, result: str, names: Sequence[str], body: Sequence[str]) -> list[str]:
    """A function of the dims, which `names` declares by letter."""
    head = f"void {name}([[maybe_unused]] const int64_t* dims, {result}) {{"
    return [head, *(f"  {line}" for line in (*names, *body)), "}"]


def compile_launchers(source: str) -> bytes:
    """The shared library of a generated source with the drivers in it, cached by content.

    Raises ToolchainError without a C++ compiler.
    """
    from tvm_ffi import libinfo

    compiler = cxx()
    own = sorted(CSRC.glob("*.cpp"))
    texts = [source, *(p.read_text() for p in [*own, *sorted(CSRC.glob("*.h"))])]
    tools = versions()
    parts = [*texts, tools.cxx, tools.tvm_ffi, *_FLAGS]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    output = cache_dir("host", key[:2]) / f"{key}.so"
    if output.exists():
        return output.read_bytes()
    with locked(output), replacing(output) as target, tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "kernels.cpp").write_text(source)
        for path in [*own, *CSRC.glob("*.h")]:
            shutil.copy(path, folder)
        includes = [f"-I{path}" for path in libinfo.include_paths()]
        library = Path(libinfo.find_libtvm_ffi())
        names = ["kernels.cpp", *(p.name for p in own)]
        objects = [*names, str(library), "-ldl", "-o", "launchers.so"]
        run([compiler, *_FLAGS, *includes, *objects], "the C++ compiler", folder)
        shutil.copy(folder / "launchers.so", target)
    return output.read_bytes()
