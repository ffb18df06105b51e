"""One op as its manifest entry describes it: what a call's tensors say about its sizes."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .errors import check

_TORCH_NAMES = {
    "bool": "bool",
    "i8": "int8",
    "u8": "uint8",
    "i32": "int32",
    "i64": "int64",
    "f16": "float16",
    "bf16": "bfloat16",
    "f32": "float32",
    "f64": "float64",
    "e4m3": "float8_e4m3fn",
    "ue8m0": "float8_e8m0fnu",
    "e2m1": "float4_e2m1fn_x2",
}
# Older versions of torch lack the narrowest types; ops that use them then name what is missing.
TORCH: Mapping[str, torch.dtype] = {
    name: getattr(torch, torch_name)
    for name, torch_name in _TORCH_NAMES.items()
    if hasattr(torch, torch_name)
}
_NAMES = {value: name for name, value in TORCH.items()}

# References are code; a manifest may only name those that ship with tileproof.
_REFERENCES = "tileproof.kernels."


@dataclass(frozen=True)
class Argument:
    """A tensor of an op: its axes in letters, its element type or type variable."""

    name: str
    shape: tuple[str, ...]
    dtype: str


class Signature:
    """How an op is called.

    `static_axes` says where each static dim can be read: (letter, input, axis). What no input
    shows is a keyword argument, like a param: `hidden` static dims, `free` sizes of outputs that
    each call chooses, and `hidden_types`, type variables of outputs.
    """

    def __init__(self, description: Mapping[str, Any]) -> None:
        self.description = description
        self.name: str = description["name"]
        self.stem = self.name.replace("/", "_")
        self.inputs = self._arguments("in", "inout")
        self.outputs = self._arguments("out")
        self.changed = frozenset(a.name for a in self._arguments("inout"))
        self.dims: Mapping[str, Mapping[str, Any]] = description["dims"]
        self.params: Mapping[str, int | float] = description["params"]
        self.static_axes: list[tuple[str, int, int]] = []
        self.dynamic_axes: dict[str, tuple[int, int]] = {}
        for i, argument in enumerate(self.inputs):
            for axis, letter in enumerate(argument.shape):
                if letter not in self.dims:
                    continue  # a number, or "N/128" beside a tensor that shows N
                if not self.dims[letter]["static"]:
                    self.dynamic_axes.setdefault(letter, (i, axis))
                elif letter not in [known for known, _, _ in self.static_axes]:
                    self.static_axes.append((letter, i, axis))
        visible = {letter for letter, _, _ in self.static_axes}
        self.hidden = [
            letter
            for letter, facts in self.dims.items()
            if facts["static"] and not facts["derived"] and letter not in visible
        ]
        self.type_axes: list[tuple[str, int]] = []
        for i, argument in enumerate(self.inputs):
            known = [variable for variable, _ in self.type_axes]
            if argument.dtype in description["types"] and argument.dtype not in known:
                self.type_axes.append((argument.dtype, i))
        letters = dict.fromkeys(letter for a in self.outputs for letter in a.shape)
        self.free = [
            letter
            for letter in letters
            if not (letter.isdigit() or letter in self.dynamic_axes or self.dims[letter]["static"])
        ]
        known = [variable for variable, _ in self.type_axes]
        self.hidden_types = [v for v in description["types"] if v not in known]

    def _arguments(self, *roles: str) -> list[Argument]:
        return [
            Argument(a["name"], tuple(a["shape"]), a["dtype"])
            for a in self.description["args"]
            if a["role"] in roles
        ]

    def check_call(self, tensors: Sequence[Any], options: Mapping[str, Any]) -> None:
        """Raise TypeError unless there is one tensor of the right rank per input and `options`
        are params or hidden dims."""
        count, names = len(self.inputs), ", ".join(a.name for a in self.inputs)
        expected = f"{count} ({names})"
        check(
            len(tensors) == count,
            f"{self.name}: tensors",
            got=len(tensors),
            expected=expected,
            error=TypeError,
        )
        for argument, value in zip(self.inputs, tensors, strict=True):
            where = f"{self.name}: {argument.name}"
            is_tensor = isinstance(value, torch.Tensor)
            check(
                is_tensor,
                where,
                got=type(value).__name__,
                expected="a torch.Tensor",
                error=TypeError,
            )
            rank = len(argument.shape)
            check(
                value.ndim == rank,
                f"{where}.ndim",
                got=value.ndim,
                expected=f"{rank} [{', '.join(argument.shape)}]",
                error=ValueError,
            )
        allowed = [*self.params, *self.hidden, *self.free, *self.hidden_types]
        unknown = sorted(set(options) - set(allowed))
        check(
            not unknown,
            f"{self.name}: keyword arguments",
            got=unknown,
            expected=f"among {allowed}",
            error=TypeError,
        )
        absent = [letter for letter in self.free if options.get(letter) is None]
        check(
            not absent,
            f"{self.name}: keyword arguments",
            got=f"no {', '.join(absent)}",
            expected="the sizes of outputs that no input shows",
            error=TypeError,
        )

    def refuse_gradients(self, tensors: Sequence[torch.Tensor]) -> None:
        """Raise RuntimeError where autograd would expect a gradient: kernels record none, and
        training would go on without it."""
        if not torch.is_grad_enabled():
            return
        for argument, tensor in zip(self.inputs, tensors, strict=False):
            if tensor.requires_grad:
                raise RuntimeError(
                    f"{self.name}: {argument.name}: got a tensor that requires grad, expected none:"
                    " the op has no backward; call it under torch.no_grad()"
                )

    def sizes(self, tensors: Sequence[torch.Tensor], options: Mapping[str, Any]) -> dict[str, int]:
        """Static dims as far as inputs and options show them."""
        dims = {letter: int(tensors[i].shape[axis]) for letter, i, axis in self.static_axes}
        given = {k: int(v) for k, v in options.items() if k in self.hidden and v is not None}
        return dims | given

    def chosen(self, options: Mapping[str, Any]) -> dict[str, int]:
        """Sizes of outputs that only the call's options show."""
        return {letter: int(options[letter]) for letter in self.free}

    def types(self, tensors: Sequence[torch.Tensor], options: Mapping[str, Any]) -> dict[str, str]:
        """The element type of each type variable that inputs or options show.

        Raises TypeError for a type no op has.
        """
        found = {}
        for variable in self.hidden_types:
            if options.get(variable) is not None:
                choices = self.description["types"][variable]
                check(
                    options[variable] in choices,
                    f"{self.name}: {variable}",
                    got=options[variable],
                    expected=" or ".join(choices),
                    error=TypeError,
                )
                found[variable] = options[variable]
        for variable, i in self.type_axes:
            choices = self.description["types"][variable]
            got = tensors[i].dtype
            check(
                _NAMES.get(got) in choices,
                f"{self.name}: {self.inputs[i].name}.dtype",
                got=got,
                expected=" or ".join(str(TORCH[c]) for c in choices),
                error=TypeError,
            )
            found[variable] = _NAMES[got]
        return found

    def parameters(self, options: Mapping[str, Any]) -> dict[str, int | float]:
        """Every param, from `options` or its default, in the type of the default."""
        return {k: type(v)(options.get(k, v)) for k, v in self.params.items()}

    def torch_dtype(self, argument: Argument, types: Mapping[str, str]) -> torch.dtype:
        """The torch type of one argument once type variables are known."""
        name = types.get(argument.dtype, argument.dtype)
        if name not in TORCH:
            needs = f"torch {torch.__version__} has no {_TORCH_NAMES[name]}"
            raise TypeError(f"{self.name}: {argument.name}: {needs}; install a newer torch")
        return TORCH[name]

    def output_shape(
        self, argument: Argument, tensors: Sequence[torch.Tensor], dims: Mapping[str, int]
    ) -> list[int]:
        """The shape of an output; `dims` has the static letters."""
        return [self._size(letter, tensors, dims) for letter in argument.shape]

    def _size(self, letter: str, tensors: Sequence[torch.Tensor], dims: Mapping[str, int]) -> int:
        if letter.isdigit():
            return int(letter)
        if letter in dims:
            return dims[letter]
        i, axis = self.dynamic_axes[letter]
        return tensors[i].shape[axis]

    def shows_outputs(self, dims: Mapping[str, int]) -> bool:
        """Whether `dims` and the inputs give every output's shape."""
        letters = {letter for a in self.outputs for letter in a.shape if not letter.isdigit()}
        return letters <= {*dims, *self.dynamic_axes}

    def reference(self) -> Callable[..., Any]:
        """The op's torch reference. Raises BundleError without one and for a path outside
        ``tileproof.kernels``."""
        known = self.description["reference"]
        check(known is not None, f"{self.name}: reference", got="none", expected="one")
        path: str = known["path"]
        check(
            path.startswith(_REFERENCES),
            f"{self.name}: reference",
            got=path,
            expected=f"a function under {_REFERENCES}*",
        )
        module, _, name = path.partition(":")
        function: Callable[..., Any] = getattr(importlib.import_module(module), name)
        return function

    def run_reference(self, tensors: Sequence[torch.Tensor], options: Mapping[str, Any]) -> Any:
        """The reference's result, contiguous like a kernel's."""
        self.check_call(tensors, options)
        self._check_letters(tensors)
        known: dict[str, Any] = self.sizes(tensors, options) | self.chosen(options)
        known.update(self.parameters(options))
        known.update(self.types(tensors, options))
        function, wanted = self.reference(), self.description["reference"]["takes"]
        missing = [k for k in wanted if k not in known]
        check(
            not missing,
            f"{self.name}: keyword arguments",
            got=f"none for {missing}",
            expected="a value",
            error=TypeError,
        )
        result = function(*tensors, **{k: known[k] for k in wanted})
        if result is None:
            return None
        if isinstance(result, torch.Tensor):
            return result.contiguous()
        return tuple(r.contiguous() for r in result)

    def _check_letters(self, tensors: Sequence[torch.Tensor]) -> None:
        """Repeated letters agree and literals hold, in the launcher's words."""
        seen: dict[str, int] = {}
        for argument, tensor in zip(self.inputs, tensors, strict=True):
            for axis, letter in enumerate(argument.shape):
                got = int(tensor.shape[axis])
                dim, _, per = letter.partition("/")
                if letter.isdigit():
                    expected, words = int(letter), letter
                elif per:
                    expected = -(-seen[dim] // int(per))
                    words = f"{letter}={expected}"
                else:
                    expected = seen.setdefault(letter, got)
                    words = f"{letter}={expected}"
                check(
                    got == expected,
                    f"{self.name}: {argument.name}.shape[{axis}]",
                    got=got,
                    expected=words,
                    error=ValueError,
                )


def returned(outputs: Sequence[torch.Tensor]) -> Any:
    """What a call returns: the output, a tuple of the outputs, None where there is none."""
    return tuple(outputs) if len(outputs) > 1 else next(iter(outputs), None)
