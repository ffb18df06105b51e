"""`load` and `Library`: the ops of one or more bundles, called on torch tensors."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from . import ops
from .backends import Code, Cuda, Null, Virtual, choose
from .bundle import Bundle
from .errors import MissingKernel, check
from .signature import Signature, returned

_MOST_READY = 64  # calls of an op that are known; each may choose sizes that none had before

Run = Callable[..., Any]


def load(
    path: str | Path,
    backend: str = "auto",
    arch: str | None = None,
    *,
    check_elements: bool = True,
) -> Library:
    """Load the bundle `path` and make it the library that ``tileproof.ops`` runs on.

    Args:
        path: a folder written by ``tileproof build``.
        backend: ``"cuda"``; ``"virtual"``, the virtual GPU on CPU tensors; ``"reference"``, the
            torch references; ``"null"``, launchers without launches; ``"auto"``, cuda on a
            machine with a device, else virtual.
        arch: whose code to run; by default what the device needs, or the bundle's first.
        check_elements: launch a check before every op with a contract on the elements of an index
            tensor. Without it such ops are one launch, and their proofs hold only if the caller
            keeps the contract.

    Raises BundleError in one sentence for a damaged bundle or one without code for the device.
    """
    with _uncollected():
        bundle = Bundle(path)
        if backend == "reference":
            library = Library.reference(bundle.manifest["ops"].values())
        else:
            library = Library(choose(backend, arch, bundle), check_elements)
            library.add(bundle)
    ops.activate(library)
    return library


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """No garbage collection within: the many small objects of a manifest would set off one over all
    of torch, which takes longer than everything else."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


class Library:
    """Ops by name: ``lib.mhc_post(x, y, post, comb)`` or ``lib["mhc/post"](...)``."""

    def __init__(self, backend: Cuda | Virtual | Null | None, check_elements: bool = True) -> None:
        self._backend = backend
        self._check_elements = check_elements
        self._operations: dict[str, Operation] = {}

    @classmethod
    def reference(cls, descriptions: Iterable[Mapping[str, Any]]) -> Library:
        """A library that runs torch references and needs no bundle.

        `descriptions` are what ``tileproof.codegen.bundle.describe`` gives for an op.
        """
        library = cls(None)
        for description in descriptions:
            library._operation(description)
        return library

    @property
    def backend(self) -> str:
        """``"cuda"``, ``"virtual"``, ``"null"`` or ``"reference"``."""
        return self._backend.name if self._backend is not None else "reference"

    @property
    def ops(self) -> list[str]:
        """Names of the ops, e.g. ``mhc/post``."""
        return sorted(operation.signature.name for operation in self._operations.values())

    def add(self, bundle: Bundle | str | Path) -> None:
        """Add the kernels of another bundle; where both have one, the newer is used."""
        source = bundle if isinstance(bundle, Bundle) else Bundle(bundle)
        code = Code(source, self._check_elements)
        if self._backend is not None and self._backend.native:
            ops.nativize(code.launchers)
        for description in source.manifest["ops"].values():
            self._operation(description)
        for symbol, facts in source.manifest["specializations"].items():
            self[facts["op"]].add(code, symbol, facts)
        ops.forget()

    def _operation(self, description: Mapping[str, Any]) -> Operation:
        signature = Signature(description)
        if signature.stem not in self._operations:
            ops.register(signature)
            self._operations[signature.stem] = Operation(signature, self._backend)
        return self._operations[signature.stem]

    def __getitem__(self, name: str) -> Operation:
        operation = self._operations.get(name.replace("/", "_"))
        if operation is None:
            raise KeyError(f"op: got {name!r}, expected one of {', '.join(self.ops)}")
        return operation

    def __getattr__(self, stem: str) -> Operation:
        if stem.startswith("_"):  # what copying and pickling ask for before anything is set
            raise AttributeError(stem)
        if stem not in self._operations:
            raise AttributeError(f"op: got {stem!r}, expected one of {', '.join(self.ops)}")
        return self._operations[stem]

    def has(self, name: str, **sizes: Any) -> bool:
        """Whether op `name` can run at these static dims, types and params (defaults apply)."""
        operation = self._operations.get(name.replace("/", "_"))
        return operation is not None and operation.has(sizes)


class Operation:
    """One op of a library. Calling it allocates the outputs and runs it.

    Inputs are torch tensors of exactly the op's rank; params, and dims and types no input shows,
    are keyword arguments. Returns the output, or a tuple of the outputs. Inputs that the op changes
    are changed in place. Raises MissingKernel when no specialization fits, and ValueError or
    TypeError when a tensor breaks the op's contract.
    """

    def __init__(self, signature: Signature, backend: Cuda | Virtual | Null | None) -> None:
        self.signature = signature
        self._backend = backend
        self._kernels: list[tuple[Code, str, dict[str, Any]]] = []
        self._ready: dict[tuple[Any, ...], Run] = {}
        self._functions: dict[tuple[str, int], Callable[..., None]] = {}  # by symbol and device
        self._lock = threading.Lock()
        self._axes = [(i, axis) for _, i, axis in signature.static_axes]
        self._typed = [i for _, i in signature.type_axes]

    def add(self, code: Code, symbol: str, facts: Mapping[str, Any]) -> None:
        """Add one specialization; it comes before those added earlier."""
        sizes = {**facts["dims"], **facts["types"], **facts["params"]}
        self._kernels.insert(0, (code, symbol, sizes))
        self._ready.clear()
        self._functions.clear()

    def __call__(self, *tensors: torch.Tensor, **options: Any) -> Any:
        try:
            key = self._key(tensors, options)
            run = self._ready.get(key)
        except (AttributeError, IndexError, TypeError):
            self.signature.check_call(tensors, options)
            raise
        if self._backend is not None:
            self.signature.refuse_gradients(tensors)
        if run is None:
            with self._lock:  # two threads shall not load one module twice
                run = self._ready.get(key)
                if run is None:
                    run = self._prepare(tensors, options)
                    if len(self._ready) == _MOST_READY:
                        del self._ready[next(iter(self._ready))]
                    self._ready[key] = run
        return run(*tensors)

    def _key(self, tensors: Sequence[torch.Tensor], options: Mapping[str, Any]) -> tuple[Any, ...]:
        """What decides which kernel a call runs, and on which device."""
        key: list[Any] = [len(tensors), tensors[0].get_device(), *sorted(options.items())]
        key += [tensors[i].size(axis) for i, axis in self._axes]
        key += [tensors[i].dtype for i in self._typed]
        return tuple(key)

    def _prepare(self, tensors: Sequence[torch.Tensor], options: Mapping[str, Any]) -> Run:
        """What runs every call with this key: allocation and launch in the fewest steps."""
        signature = self.signature
        if self._backend is None:
            return lambda *inputs: signature.run_reference(inputs, options)
        symbol, sizes = self.select(tensors, options)
        where = symbol, tensors[0].get_device()
        if where not in self._functions:  # sizes that each call chooses share one module
            self._functions[where] = self.kernel(*where)
        types = {variable: sizes[variable] for variable in signature.description["types"]}
        dims = {letter: sizes[letter] for letter, d in signature.dims.items() if d["static"]}
        outputs = []
        for argument in signature.outputs:
            known = {**signature.dynamic_axes, **signature.chosen(options), **dims}
            shape = tuple(int(x) if x.isdigit() else known[x] for x in argument.shape)
            outputs.append(Result(shape, signature.torch_dtype(argument, types)))
        return Prepared(self._functions[where], outputs)

    def native(
        self, tensors: Sequence[torch.Tensor], options: Mapping[str, Any]
    ) -> Prepared | None:
        """What a call like this one allocates and launches; None where it takes Python."""
        if self._backend is None or not self._backend.native:
            return None
        run = self._ready.get(self._key(tensors, options))
        return run if isinstance(run, Prepared) else None

    def kernel(self, symbol: str, device_index: int = -1) -> Callable[..., None]:
        """The function of one specialization: it takes inputs, then outputs, and allocates nothing.

        On the cuda and null backends it is the bare TVM-FFI function, which takes any DLPack
        arrays. `device_index` is the CUDA device, -1 for the CPU.
        """
        if self._backend is None:
            raise TypeError(f"{self.signature.name}: the reference backend has no kernels")
        names = [a["name"] for a in self.signature.description["args"]]
        code = next((c for c, known, _ in self._kernels if known == symbol), None)
        have = ", ".join(known for _, known, _ in self._kernels)
        if code is None:
            raise KeyError(f"{self.signature.name}: kernel: got {symbol}, expected one of {have}")
        return self._backend.function(code, symbol, names, device_index)

    def select(
        self, tensors: Sequence[torch.Tensor], options: Mapping[str, Any]
    ) -> tuple[str, dict[str, Any]]:
        """Symbol and sizes of the specialization for a call. Raises MissingKernel without one."""
        signature = self.signature
        signature.check_call(tensors, options)
        types = signature.types(tensors, options)
        wanted = {**signature.sizes(tensors, options), **signature.parameters(options)}
        fitting = self._fitting({**wanted, **types})
        if not fitting:
            got = _words({**types, **wanted})
            have = "; ".join(
                dict.fromkeys(
                    _words({k: sizes[k] for k in {**types, **wanted}})
                    for _, _, sizes in self._kernels
                )
            )
            words = (
                f"{signature.name}: got {got}, expected a kernel of the library: {have or 'none'}"
            )
            raise MissingKernel(words, signature.name, wanted, types)
        for letter in (*signature.hidden, *signature.hidden_types):
            values = sorted({sizes[letter] for _, _, sizes in fitting})
            check(
                len(values) == 1,
                f"{signature.name}: {letter}",
                got="no value",
                expected=f"one of {values} as a keyword argument",
                error=TypeError,
            )
        _, symbol, sizes = fitting[0]
        return symbol, sizes

    def _fitting(self, sizes: Mapping[str, Any]) -> list[tuple[Code, str, dict[str, Any]]]:
        return [k for k in self._kernels if all(k[2].get(n) == v for n, v in sizes.items())]

    def has(self, sizes: Mapping[str, Any]) -> bool:
        """Whether a specialization has these static dims, types and params (defaults apply)."""
        return self._backend is None or bool(self._fitting({**self.signature.params, **sizes}))

    def fake(self, tensors: tuple[torch.Tensor, ...], options: Mapping[str, Any]) -> Any:
        """Outputs without values, for tracing: shapes may be symbolic in dynamic dims."""
        signature = self.signature
        dims = {**signature.sizes(tensors, options), **signature.chosen(options)}
        types = signature.types(tensors, options)
        if not signature.shows_outputs(dims) or {*signature.hidden_types} - {*types}:
            if self._backend is None:
                return signature.run_reference(tensors, options)
            sizes = self.select(tensors, options)[1]
            dims |= {letter: sizes[letter] for letter, d in signature.dims.items() if d["static"]}
            types = {variable: sizes[variable] for variable in signature.description["types"]}
        outputs = [
            tensors[0].new_empty(
                signature.output_shape(argument, tensors, dims),
                dtype=signature.torch_dtype(argument, types),
            )
            for argument in signature.outputs
        ]
        return returned(outputs)


class Result(NamedTuple):
    """An output to allocate: each size is a number or the (input, axis) it is read from."""

    shape: tuple[int | tuple[int, int], ...]
    dtype: torch.dtype


class Prepared:
    """A kernel and its outputs; calling it with the inputs allocates, runs and returns them."""

    def __init__(self, function: Callable[..., None], outputs: Sequence[Result]) -> None:
        self.function, self.outputs = function, outputs

    def __call__(self, *inputs: torch.Tensor) -> Any:
        """The output, or a tuple of the outputs; see `signature.returned`."""
        results = []
        for shape, dtype in self.outputs:
            sizes = [s if isinstance(s, int) else inputs[s[0]].size(s[1]) for s in shape]
            results.append(inputs[0].new_empty(sizes, dtype=dtype))
        self.function(*inputs, *results)
        return returned(results)


def _words(sizes: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in sizes.items())
