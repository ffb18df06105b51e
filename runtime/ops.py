"""``tileproof.ops.mhc_post`` and ``torch.ops.tileproof.mhc_post``: the ops of the active library.

Each op is defined once per process from its description; which library runs it is decided at the
call, so loading another bundle re-traces nothing. Where launchers are loaded, a call runs without
Python (``csrc/torch_op.cpp``): a Python kernel costs ten microseconds and torch's ``custom_op``
wrapper more than twenty. The Python implementation stays behind it, for a first call of each size,
for other libraries, where gradients are recorded and for everything that is wrong.
"""

from __future__ import annotations

import contextlib
import ctypes
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
import tvm_ffi

from .errors import check
from .signature import Signature, returned

if TYPE_CHECKING:
    from .loader import Library

# A copy of this runtime inside a package of kernels (`codegen.package`) has ops of its own.
_PACKAGE = re.sub(r"\W", "_", __name__.removesuffix(".runtime.ops"))
NAMESPACE = _PACKAGE.removesuffix("__runtime_ops")
_registry = torch.library.Library(NAMESPACE, "FRAGMENT")
# The Python implementations, of the same schemas; what is wrong is kept for whoever called them.
_PYTHON = f"{NAMESPACE}_python"
_python = torch.library.Library(_PYTHON, "FRAGMENT")
_defined: dict[str, _Defined] = {}
_native: Any = None  # the launchers of the first bundle that has any, kept for the process
_loaded: list[Library] = []
_blocks = 0  # how many `use` blocks are open
_lock = threading.RLock()
# A list of one, emptied when its block ends: a task that outlives the block is outside of it.
_chosen: ContextVar[list[Library] | None] = ContextVar("tileproof_library", default=None)


def activate(library: Library) -> None:
    """Make `library` what ops run on wherever :func:`use` chose no other."""
    with _lock:
        _loaded[:] = [library]
        forget()


def forget() -> None:
    """Have the next call of every op ask Python what to run."""
    if _native is not None:
        _call("forget", _blocks > 0)


@contextlib.contextmanager
def use(library: Library) -> Iterator[Library]:
    """Ops called within the block run on `library`."""
    chosen = [library]
    token = _chosen.set(chosen)
    _count_blocks(1)
    try:
        yield library
    finally:
        chosen.clear()
        _chosen.reset(token)
        _count_blocks(-1)


def _count_blocks(change: int) -> None:
    """Which block a call is in only Python knows, so all calls ask it while one is open."""
    global _blocks
    with _lock:
        before, _blocks = _blocks, _blocks + change
        if (before > 0) != (_blocks > 0):
            forget()


def active() -> Library:
    """The library ops run on. Raises RuntimeError when none was loaded."""
    library = next(iter(_chosen.get() or _loaded), None)
    if library is None:
        raise RuntimeError("got no library, expected one: call tileproof.load(bundle) first")
    return library


def schema(signature: Signature) -> str:
    """The torch schema of an op: inputs, then what no input shows as keywords."""
    marks = iter("abcdefghijklmnopqrstuvwxyz")  # one for each tensor that is changed
    arguments = [
        f"Tensor({next(marks)}!) {a.name}" if a.name in signature.changed else f"Tensor {a.name}"
        for a in signature.inputs
    ]
    keywords = [f"{k}={v}" for k, v in signature.params.items()]
    types = ["int" if isinstance(v, int) else "float" for v in signature.params.values()]
    options = [f"{kind} {text}" for kind, text in zip(types, keywords, strict=True)]
    options += [f"int? {letter}=None" for letter in (*signature.hidden, *signature.free)]
    options += [f"str? {variable}=None" for variable in signature.hidden_types]
    if options:
        arguments += ["*", *options]
    results = ", ".join(["Tensor"] * len(signature.outputs))
    if len(signature.outputs) != 1:
        results = f"({results})"
    return f"{signature.stem}({', '.join(arguments)}) -> {results}"


class _Defined:
    """One op of this process. `kernel` is the registration of its Python kernel, None where the
    native kernel has its place."""

    def __init__(self, signature: Signature, text: str) -> None:
        self.signature, self.schema = signature, text
        self.kernel: torch.library.Library | None = None
        stem = signature.stem
        _registry.define(self.schema, tags=[torch.Tag.pt2_compliant_tag])
        _python.define(self.schema)
        _python.impl(stem, self.answer, "CompositeExplicitAutograd")  # whatever the device
        # What `register_fake` does as well, a millisecond an op, is to look up who called it.
        _registry.impl(stem, self.fake, "Meta")
        self.implement()

    def implement(self) -> None:
        """Register the native kernel where launchers are loaded and torch has what it takes."""
        signature = self.signature
        if self.kernel is not None:
            self.kernel._destroy()
            self.kernel = None
        if _native is not None and not signature.hidden_types:  # it takes no texts
            hidden = len(signature.hidden) + len(signature.free)
            options = [0] * len(signature.params) + [1] * hidden
            axes = [number for _, i, axis in signature.static_axes for number in (i, axis)]
            typed = [i for _, i in signature.type_axes]
            counts = [len(signature.inputs), len(signature.outputs)]
            counts += [len(signature.static_axes), len(typed), len(options)]
            layout = [*counts, *axes, *typed, *options]
            if _call("implement", NAMESPACE, _PYTHON, signature.stem, layout):
                return
        self.kernel = torch.library.Library(NAMESPACE, "IMPL")
        for key in ("CPU", "CUDA"):
            self.kernel.impl(signature.stem, self.run, key)

    def run(self, *tensors: torch.Tensor, **options: Any) -> Any:
        """The op on the library that is active here."""
        self.signature.refuse_gradients(tensors)
        params = self.signature.params
        given = {k: v for k, v in options.items() if v is not None or k in params}
        return active()[self.signature.stem](*tensors, **given)

    def answer(self, *tensors: torch.Tensor, **options: Any) -> Any:
        """For the native kernel: :meth:`run`, but no exception crosses torch's C interface."""
        try:
            result = self.run(*tensors, **options)
            self._offer(tensors, options)
            return result
        except BaseException as met:
            ctypes.pythonapi.Py_IncRef(
                ctypes.py_object(met)
            )  # whoever raises it again gives it back
            _call("raise", id(met), str(met))
        return returned([torch.empty(0) for _ in self.signature.outputs])

    def _offer(self, tensors: Sequence[torch.Tensor], options: Mapping[str, Any]) -> None:
        """Tell the native kernel what the next call of these sizes may do without us."""
        library = active()
        with _lock:
            if _blocks or library is not _loaded[0]:
                return
            given = {k: v for k, v in options.items() if v is not None}
            call = library[self.signature.stem].native(tensors, given)
            if call is None:
                return
            layout = [len(call.outputs)]
            for output in call.outputs:
                element = tvm_ffi.dtype(str(output.dtype).removeprefix("torch."))
                layout += [element.type_code, element.bits, len(output.shape)]
                for size in output.shape:
                    layout += size if isinstance(size, tuple) else (-1, size)
            _call("offer", call.function, layout)

    def fake(self, *tensors: torch.Tensor, **options: Any) -> Any:
        """Outputs without values, for tracing."""
        return active()[self.signature.stem].fake(tensors, options)


def register(signature: Signature) -> None:
    """Define the torch op, once. Raises BundleError if it exists with another schema."""
    with _lock:
        known, text = _defined.get(signature.stem), schema(signature)
        check(
            known is None or known.schema == text,
            f"torch op {signature.stem}",
            got=text,
            expected=f"{known and known.schema} as already registered in this process",
        )
        if known is None:
            _defined[signature.stem] = _Defined(signature, text)


def nativize(launchers: Any) -> None:
    """Have calls answered without Python where they can be, by a loaded library of launchers."""
    global _native
    with _lock:
        if _native is None:
            _native = launchers
            for op in _defined.values():
                op.implement()
            forget()


def _call(name: str, *arguments: Any) -> Any:
    """A function of ``csrc/torch_op.cpp``, which gets texts and lists of numbers by address."""
    held: list[Any] = []
    for argument in arguments:
        if isinstance(argument, str):
            argument = ctypes.create_string_buffer(argument.encode())
        elif isinstance(argument, list):
            argument = (ctypes.c_int64 * len(argument))(*argument)
        held.append(argument)
    passed = [ctypes.addressof(h) if isinstance(h, ctypes.Array) else h for h in held]
    return _native[f"torch_{name}"](*passed)


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(name)
    if name not in _defined:
        have = f"one of {', '.join(sorted(_defined))}" if _defined else "a loaded bundle"
        raise AttributeError(f"tileproof.ops: got {name}, expected {have}; see tileproof.load")
    # An op is defined for good, and looking one up takes as long as calling it.
    return globals().setdefault(name, getattr(getattr(torch.ops, NAMESPACE), name))


def __dir__() -> list[str]:
    return sorted(_defined)
