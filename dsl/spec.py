"""`Op`: what is true of a kernel, declared once.

One declaration has five readers: the prover's assumptions and goals, the launcher's run-time
checks, the Hypothesis strategies of the tests, the shapes of tests, benchmarks and builds, and the
generated reference page. An `Op` therefore holds no code that touches a device; it names tensors
by letters (B batch, S new tokens, T compressed entries, H heads, D head or hidden dim, K top-k or
inner dim, R compression ratio, E experts, N residual streams, M tokens flattened, W window).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from . import layout, registry
from .arch import ALL
from .check import check
from .dtypes import DTYPES, DType, dtype
from .expression import fixed

Role = Literal["in", "out", "inout"]


@dataclass(frozen=True)
class Dim:
    """The domain of one letter: ``lo <= letter <= hi`` and ``letter % multiple == 0``.

    `static` dims are factory arguments (one compile each); the others travel with every launch.
    `batch` dims may never influence how another dim is reduced: a token's bits do not depend on its
    neighbours. `derived` computes a static dim from the other static dims.
    """

    lo: int
    hi: int
    multiple: int = 1
    batch: bool = False
    static: bool = False
    derived: Callable[..., int] | None = None

    def check(self, letter: str, value: int) -> None:
        """Raise ContractError unless `value` lies in the domain."""
        domain = f"{self.lo}..{self.hi}"
        check(self.lo <= value <= self.hi, f"dim {letter}", got=value, expected=domain)
        expected = f"a multiple of {self.multiple}"
        check(value % self.multiple == 0, f"dim {letter}", got=value, expected=expected)


def dim(lo: int, hi: int, *, multiple: int = 1, batch: bool = False) -> Dim:
    """A dim known only at launch, ``lo..hi`` inclusive."""
    return Dim(lo, hi, multiple, batch)


def static(lo: int, hi: int, *, multiple: int = 1) -> Dim:
    """A dim fixed when the kernel is compiled, ``lo..hi`` inclusive."""
    return Dim(lo, hi, multiple, static=True)


def derived(function: Callable[..., int], lo: int = 1, hi: int = 1 << 20) -> Dim:
    """A static dim that is a function of other static dims, named by the function's parameters."""
    return Dim(lo, hi, static=True, derived=function)


@dataclass(frozen=True)
class Values:
    """The element contract of an integer tensor: ``lo <= v <= hi``, ends may be dim expressions.

    ``Values("0", "T-1", none=-1)`` is an index that is either in range or -1 ("none", never
    dereferenced). `monotone` says that elements do not decrease along the last dim, `distinct` that
    no two are equal, "none" aside: where an index says what a block writes, no other block does.
    """

    lo: str
    hi: str
    none: int | None = None
    monotone: bool = False
    distinct: bool = False

    def at(self, sizes: Mapping[str, int]) -> Values:
        """The contract with the dims that have a size written as numbers."""
        return replace(self, lo=fixed(self.lo, sizes), hi=fixed(self.hi, sizes))


@dataclass(frozen=True)
class Tensor:
    """One tensor argument: row-major, `shape` in letters, e.g. ``"M N D"``.

    ``"N/128"`` is as many as it takes to have one for each 128 of N; an earlier tensor shows N.
    `dtype` is a type name or one of the op's type variables. `strides` (in elements) are letters or
    numbers like the shape, e.g. ``"P 1"`` for rows P apart; a stride is at least the length of what
    it steps over, so rows never overlap. None means contiguous. `written` states the output
    contract: ``"once"`` (every element by exactly one thread) or ``"all"`` (every element at least
    once). `align` is the byte alignment of the data pointer that vector accesses rely on. The
    launcher checks all of it, the prover assumes it.
    """

    name: str
    shape: tuple[str, ...]
    dtype: str
    role: Role
    written: Literal["once", "all"] | None = None
    values: Values | None = None
    strides: tuple[str, ...] | None = None
    align: int = 16


def In(  # noqa: N802
    name: str, shape: str, dtype: str, *, values: Values | None = None, strides: str | None = None
) -> Tensor:
    """A tensor the kernel only reads."""
    steps = None if strides is None else tuple(strides.split())
    return Tensor(name, tuple(shape.split()), dtype, "in", values=values, strides=steps)


def Out(  # noqa: N802
    name: str,
    shape: str,
    dtype: str,
    *,
    written: Literal["once", "all"] = "once",
    strides: str | None = None,
) -> Tensor:
    """A tensor the kernel fills; what it held before is never read."""
    steps = None if strides is None else tuple(strides.split())
    return Tensor(name, tuple(shape.split()), dtype, "out", written=written, strides=steps)


def InOut(name: str, shape: str, dtype: str, *, strides: str | None = None) -> Tensor:  # noqa: N802
    """A tensor the kernel changes in part, such as a cache; it comes before the outputs."""
    return replace(In(name, shape, dtype, strides=strides), role="inout")


@dataclass(frozen=True)
class BoundTensor:
    """A `Tensor` of one specialization: static dims are numbers, dynamic dims stay letters."""

    name: str
    shape: tuple[int | str, ...]
    dtype: DType
    role: Role
    written: str | None
    values: Values | None
    strides: tuple[int | str, ...] | None
    align: int


@dataclass(frozen=True)
class Variant:
    """One TileLang factory with the architectures it is for and its tile options.

    `matrix` says that the kernel must contain the architecture's matrix instruction; a build where
    it is missing fails. `contract_fma` states whether ``a*b+c`` may become one rounding. `alike`
    says that what TileLang makes for the oldest of them serves all; the text is written for each.
    """

    factory: Callable[..., Any]
    archs: tuple[str, ...]
    tiles: Mapping[str, Any]
    matrix: bool = False
    contract_fma: bool = True
    pass_configs: Mapping[str, Any] = field(default_factory=dict)
    alike: bool = False

    def lowered_for(self, arch: str) -> str:
        """The architecture whose program `arch` gets: of those alike the oldest, or its own."""
        return next(name for name in ALL if name in self.archs) if self.alike else arch


@dataclass(eq=False)
class Op:
    """One operation of the library, e.g. ``mhc/post``; registers itself under its name.

    Args:
        name: ``family/stem``; the stem is also the file, the test, the bench entry.
        args: tensors in call order, inputs before outputs.
        dims: domain of each letter.
        doc: one line for lists and the reference page, with the section of the specification.
        types: type variables, e.g. ``{"act": ("bf16", "f32")}``.
        params: compile-time scalars with defaults, e.g. ``{"iters": 20, "eps": 1e-6}``.
        reference: ``f(*inputs, ...) -> output or tuple of outputs`` in plain torch, which changes
            what is "inout" in place; further parameters are the params and static dims it needs, by
            name.
        shapes: named size sets: static letters to ints; dynamic letters to an int or list of ints.
        model_sizes: Hugging Face config (as a dict) to the static sizes and params it needs.
        reduces: dims summed over, always in one fixed order.
        order: position of each of `args` in the kernel's own signature, where that is another.
        listed: whether the op is one of the library's.
    """

    name: str
    args: tuple[Tensor, ...]
    dims: Mapping[str, Dim]
    doc: str
    reference: Callable[..., Any] | None
    shapes: Mapping[str, Mapping[str, Any]]
    types: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    params: Mapping[str, int | float] = field(default_factory=dict)
    model_sizes: Callable[[Mapping[str, Any]], Iterable[Mapping[str, Any]]] | None = None
    reduces: tuple[str, ...] = ()
    order: tuple[int, ...] = ()
    listed: bool = True
    variants: list[Variant] = field(default_factory=list)

    def __post_init__(self) -> None:
        named = {layout.letter_of(d) for a in self.args for d in (*a.shape, *(a.strides or ()))}
        missing = named - {"", *self.dims}
        check(not missing, f"{self.name}: dims", got=f"no domain for {missing}", expected="all")
        shown: set[str] = set()
        for a in self.args:
            shown |= set(a.shape) & set(self.dims)
            unseen = sorted({layout.letter_of(d) for d in a.shape} - {"", *shown})
            where = f"{self.name}: shape of {a.name}"
            check(not unseen, where, got=f"no {unseen}", expected="a tensor before it with them")
            whole = a.role != "out" or not any("/" in d for d in a.shape)
            check(whole, where, got=a.shape, expected="dims and numbers, being an output's")
            known = a.dtype in DTYPES or a.dtype in self.types
            check(known, f"{self.name}: dtype of {a.name}", got=a.dtype, expected="a known type")
            self._check_layout(a)
        if self.listed:
            registry.add(self)

    def _check_layout(self, a: Tensor) -> None:
        if a.strides is None:
            return
        where, rank = f"{self.name}: strides of {a.name}", len(a.shape)
        check(len(a.strides) == rank, where, got=len(a.strides), expected=f"{rank}, one per axis")
        checked = a.values is None
        check(checked, where, got="strides", expected="none beside an element contract")

    @property
    def stem(self) -> str:
        """``mhc/post`` → ``mhc_post``: the name of the torch op and the prefix of symbols."""
        return self.name.replace("/", "_")

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return tuple(a for a in self.args if a.role != "out")

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        return tuple(a for a in self.args if a.role != "in")

    @property
    def dynamic(self) -> dict[str, Dim]:
        """Dims that travel with a launch, in declaration order."""
        return {k: d for k, d in self.dims.items() if not d.static}

    @property
    def pitches(self) -> dict[str, Dim]:
        """Dynamic dims that only strides show; a call that does not choose one gets the least."""
        sizes = {letter for a in self.args for letter in a.shape}
        return {k: d for k, d in self.dynamic.items() if k not in sizes}

    def kernel(
        self,
        *,
        archs: tuple[str, ...] = ALL,
        matrix: bool = False,
        contract_fma: bool = True,
        pass_configs: Mapping[str, Any] | None = None,
        alike: bool = False,
        **tiles: Any,
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Decorator: add a factory ``f(T, <dims>, <dtypes>, <params>, <tiles>) -> prim_func``.

        The factory takes, by name, TileLang's language module as ``T``, any static dim (int), any
        dynamic dim (a TileLang symbol), any type variable (TileLang dtype string), params, tiles.
        A dim T comes as ``T_``.
        """

        def add(factory: Callable[..., Any]) -> Callable[..., Any]:
            configs = dict(pass_configs or {})
            more = (matrix, contract_fma, configs, alike)
            self.variants.append(Variant(factory, archs, tiles, *more))
            return factory

        return add

    def variant(self, arch: str) -> Variant:
        """The factory for `arch`. Raises ContractError naming the architectures that have one."""
        for v in self.variants:
            if arch in v.archs:
                return v
        have = sorted({a for v in self.variants for a in v.archs})
        check(False, f"{self.name}: architecture", got=arch, expected=f"one of {', '.join(have)}")
        raise AssertionError  # unreachable: check raised

    def specialize(self, **sizes: Any) -> Specialization:
        """Fix every static dim, type variable and param; derived dims and defaults are filled in.

        Raises ContractError for an unknown, missing or out-of-domain value.
        """
        known = {k for k, d in self.dims.items() if d.static} | set(self.types) | set(self.params)
        unknown = sorted(set(sizes) - known)
        check(not unknown, f"{self.name}: sizes", got=unknown, expected=f"among {sorted(known)}")
        dims: dict[str, int] = {}
        for letter, d in self.dims.items():
            if not d.static:
                continue
            if d.derived is not None:
                needs = inspect.signature(d.derived).parameters
                value = d.derived(**{n: dims[n] for n in needs})
            else:
                check(letter in sizes, f"{self.name}: dim {letter}", got="none", expected="a size")
                value = int(sizes[letter])
            try:
                d.check(letter, value)
            except ValueError as error:
                raise type(error)(f"{self.name}: {error}") from None
            dims[letter] = value
        dtypes: dict[str, str] = {}
        for variable, choices in self.types.items():
            got = sizes.get(variable, choices[0])
            got = dtypes.get(got, got)  # "act": the type that variable has
            expected = f"one of {', '.join(choices)}"
            check(got in choices, f"{self.name}: type {variable}", got=got, expected=expected)
            dtypes[variable] = got
        params = {k: type(v)(sizes.get(k, v)) for k, v in self.params.items()}
        return Specialization(self, dims, dtypes, params)

    def for_model(self, config: Mapping[str, Any], act: str | None = None) -> list[Specialization]:
        """The specializations a Hugging Face DeepSeek-V4 config needs (none when it has no use)."""
        if self.model_sizes is None:
            return []
        try:
            sizes = [dict(s) for s in self.model_sizes(config)]
        except KeyError as missing:
            where = f"{self.name}: {missing} of the model's config"
            check(False, where, got="none", expected="a size")
        if act is not None and "act" in self.types:
            sizes = [s | {"act": act} for s in sizes]
        unique = {s.symbol: s for s in (self.specialize(**s) for s in sizes)}
        return list(unique.values())

    def shape_set(self, name: str) -> tuple[list[Specialization], list[dict[str, int]]]:
        """A named size set as (one specialization per type choice, every dynamic size)."""
        sizes = self.shapes[name]
        fixed = {k: v for k, v in sizes.items() if k not in self.dynamic}
        points: list[dict[str, int]] = [{}]
        for letter in self.dynamic:
            if letter in self.pitches and letter not in sizes:
                continue
            values = sizes[letter] if isinstance(sizes[letter], (list, tuple)) else [sizes[letter]]
            points = [p | {letter: v} for p in points for v in values]
        choices: list[dict[str, str]] = [{}]
        for variable, names in self.types.items():
            choices = [c | {variable: n} for c in choices for n in names]
        return [self.specialize(**(fixed | c)) for c in choices], points


@dataclass(frozen=True, eq=False)
class Specialization:
    """An `Op` with every static dim, type and param fixed: one cubin per architecture."""

    op: Op
    dims: Mapping[str, int]
    types: Mapping[str, str]
    params: Mapping[str, int | float]

    @property
    def symbol(self) -> str:
        """A C identifier that names this specialization, e.g. ``mhc_post__bf16_N4_D4096``."""
        parts = list(self.types.values())
        parts += [f"{k}{v}" for k, v in self.dims.items() if self.op.dims[k].derived is None]
        defaults = self.op.params
        for key, value in self.params.items():
            if value != defaults[key]:
                text = repr(value).replace(".", "p").replace("-", "m").replace("+", "")
                parts.append(f"{key}{text}")
        return "__".join([self.op.stem, "_".join(parts)]) if parts else self.op.stem

    @property
    def args(self) -> tuple[BoundTensor, ...]:
        """The op's tensors with static dims and types filled in."""
        out = []
        for a in self.op.args:
            element = dtype(self.types.get(a.dtype, a.dtype))
            steps = None if a.strides is None else self._bound(a.strides)
            values = a.values and a.values.at(self.dims)
            facts = (a.role, a.written, values, steps, a.align)
            out.append(BoundTensor(a.name, self._bound(a.shape), element, *facts))
        return tuple(out)

    def _bound(self, letters: tuple[str, ...]) -> tuple[int | str, ...]:
        fixed = {"", *self.dims}
        return tuple(
            layout.value(d, self.dims) if layout.letter_of(d) in fixed else d for d in letters
        )

    def prim_func(self, arch: str) -> Any:
        """Build the TileLang function for `arch`. Imports TileLang (only here)."""
        import tilelang.language as T

        variant = self.op.variant(arch)
        sizes = {**self.dims, **{d: T.dynamic(d) for d in self.op.dynamic}}
        if "T" in sizes:  # the letter of compressed entries is also TileLang's customary name
            sizes["T_"] = sizes.pop("T")
        available: dict[str, Any] = {"T": T, **sizes, **self.params, **variant.tiles}
        available |= {v: dtype(n).tilelang for v, n in self.types.items()}
        wanted = inspect.signature(variant.factory).parameters
        missing = sorted(set(wanted) - set(available))
        expected = f"among {sorted(available)}"
        check(not missing, f"{self.op.name}: factory arguments", got=missing, expected=expected)
        return variant.factory(**{n: available[n] for n in wanted}).with_attr(
            "global_symbol", self.symbol
        )

    def reference(self, *inputs: Any) -> Any:
        """The op's reference on `inputs`, with the params and static dims it names filled in."""
        reference = self.op.reference
        check(reference is not None, f"{self.op.name}: reference", got="none", expected="one")
        assert reference is not None  # as just checked
        wanted = inspect.signature(reference).parameters
        fixed = {**self.dims, **self.params}
        return reference(*inputs, **{k: v for k, v in fixed.items() if k in wanted})

    def bind(self, **dynamic: int) -> dict[str, tuple[int, ...]]:
        """Concrete shape of every tensor at one dynamic size, e.g. ``bind(M=7)["x"]``."""
        sizes = self.sizes(**dynamic)
        return {a.name: tuple(layout.value(d, sizes) for d in a.shape) for a in self.args}

    def strides(self, **dynamic: int) -> dict[str, tuple[int, ...]]:
        """Strides of every tensor in elements, e.g. ``strides(M=7, P=128)["x"]``.

        Raises ContractError for a pitch that lets rows overlap.
        """
        sizes = self.sizes(**dynamic)
        return {a.name: layout.strides(a, sizes) for a in self.args}

    def sizes(self, **dynamic: int) -> dict[str, int]:
        """Every dim by letter; a pitch that is not given is the least its tensors admit.

        Raises ContractError for a size outside its domain.
        """
        for letter, value in dynamic.items():
            self.op.dims[letter].check(letter, value)
        return layout.fill_pitches(self.args, self.op.dims, {**self.dims, **dynamic})
