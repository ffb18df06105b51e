"""`tileproof.patch`: the kernels inside a transformers DeepSeek-V4 model, and out again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from tileproof.dsl import ContractError, check

if TYPE_CHECKING:
    import torch

    from .layers import Patched

OnMissing = Literal["compile", "error", "reference"]


class Patch:
    """A patched model; :meth:`undo` (or leaving its ``with`` block) restores the exact classes.

    Attributes:
        ops: op → number of modules that run it.
        library: the loaded library the modules call.
    """

    def __init__(self, ops: Mapping[str, int], modules: list[Patched], library: Any) -> None:
        self.ops = dict(ops)
        self.library = library
        self._modules = modules

    def undo(self) -> None:
        """Give every module its class back. A second call does nothing."""
        while self._modules:
            module = self._modules.pop()
            module.__class__ = type(module).original()
            del module._tileproof

    def __enter__(self) -> Patch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.undo()

    def __repr__(self) -> str:
        state = "active" if self._modules else "undone"
        return f"Patch({state}, {', '.join(f'{op} × {n}' for op, n in self.ops.items())})"


def patch(
    model: torch.nn.Module,
    backend: str = "auto",
    *,
    bundle: str | Path | None = None,
    arch: str | None = None,
    ops: Iterable[str] | None = None,
    on_missing: OnMissing = "compile",
    precision: Literal["exact", "official"] = "exact",
) -> Patch:
    """Run a transformers DeepSeek-V4 `model` on our kernels.

    Only modules of this model change, and only their class: parameters, buffers, module names and
    the state dict stay what they are, and copies or pickles of the model are unpatched. The
    function is the specification's; against transformers in float32 it differs by rounding only,
    in bfloat16 it rounds less often (spec §0.1 item 7, §1.1, §4).

    Args:
        model: a ``DeepseekV4ForCausalLM``, ``DeepseekV4Model`` or anything that contains one and
            has its ``config``, in bf16 or f32.
        backend: ``auto``, ``cuda``, ``virtual`` or ``reference``, as for :func:`tileproof.load`.
        bundle: the kernels to load; None for those this model needs from the user's cache.
        arch: the architecture the virtual GPU plays, e.g. ``sm_90a``.
        ops: which to swap, among ``norm/rmsnorm``, ``norm/rmsnorm_unweighted``, ``mhc/pre``
            (HyperConnection), ``mhc/post`` (the residual mix of the decoder layer), ``mhc/head``,
            ``moe/topk_gate`` and ``moe/hash_gate`` (the routers), ``moe/experts`` (the routed
            ones), ``attention/sparse`` (attention as a whole, with its compressors, indexers,
            projections and cache) and ``gemm/dense`` (all other linears); None for all.
        on_missing: what happens where no kernel fits (a size the bundle lacks, another dtype, a
            call that needs gradients): ``compile`` builds missing sizes on the spot where TileLang
            is installed and raises for the rest, ``error`` raises, ``reference`` runs the op's
            torch reference.
        precision: ``exact``, activations and weights as the model has them; or ``official``, FP8
            and FP4 where the official inference code has them. Then the whole model is one network
            of ops (:mod:`deepseek_v4`): weights are quantised now, later changes of parameters are
            not seen, logits are float32, `ops` must be None, and a cache's rows stay as they are.

    Raises ContractError, in one sentence, for a model that is not DeepSeek-V4 or already patched,
    for an unknown op, and for a transformers whose DeepSeek-V4 computes something else.
    """
    choices = ("compile", "error", "reference")
    check(on_missing in choices, "on_missing", got=repr(on_missing), expected=f"one of {choices}")
    check(precision in ("exact", "official"), "precision", got=repr(precision),
          expected="'exact' or 'official'")  # fmt: skip
    official = precision == "official"
    check(not official or ops is None, "ops", got=ops, expected="None with precision='official'")
    modules = _chosen(model, ops)
    if official:
        from .hf_official import network_in

        swapped, network = network_in(model, backend, bundle, arch, on_missing)
        return Patch({"model": 1}, swapped, network.run.library)
    from .dispatch import Kernels
    from .layers import REPLACEMENTS, replacements
    from .library import References, open_library

    library, add = open_library(model, modules, backend, bundle, arch, on_missing)
    kernels = Kernels(library, add, References() if on_missing == "reference" else None)
    for op, swapped in modules.items():
        classes = {c.original(): c for c in replacements(op)}
        for module in swapped:
            module._tileproof = kernels
            module.__class__ = classes[type(module)]
    counts = {op: sum(type(m) is REPLACEMENTS[op] for m in swapped)
              for op, swapped in modules.items()}  # fmt: skip
    return Patch(counts, [m for swapped in modules.values() for m in swapped], kernels.library)


def _chosen(model: torch.nn.Module, ops: Iterable[str] | None) -> dict[str, list[Any]]:
    """Op → the modules of `model` to swap. All checks happen before anything changes."""
    try:
        from .layers import REPLACEMENTS, Patched, replacements
    except ImportError as error:
        raise ContractError(
            f"transformers: got {error}, expected version 5.20 or newer, which has DeepSeek-V4"
        ) from error

    names = list(REPLACEMENTS) if ops is None else [ops] if isinstance(ops, str) else list(ops)
    unknown = [n for n in names if n not in REPLACEMENTS]
    check(not unknown, "ops", got=unknown, expected=f"among {', '.join(REPLACEMENTS)}")
    modules = list(model.modules())
    patched = any(isinstance(m, Patched) for m in modules)
    check(not patched, "model", got="one that is patched already", expected="undo() first")

    originals = {c.original(): n for n in names for c in replacements(n)}
    idle = _idle(modules, names)
    chosen: dict[str, list[Any]] = {n: [] for n in names}
    for module in modules:
        if type(module) in originals and id(module) not in idle:
            chosen[originals[type(module)]].append(module)
    found = ", ".join(sorted({type(m).__name__ for m in modules})[:8])
    none_found = f"{type(model).__name__} made of {found}"
    wanted = [REPLACEMENTS[n].original() for n in names]
    expected = "a model with " + ", ".join(c.__name__ for c in wanted)
    own = any(type(m).__name__.startswith("DeepseekV4") for m in modules)
    check(own and any(chosen.values()), "model", got=none_found, expected=expected)
    chosen = {name: swapped for name, swapped in chosen.items() if swapped}
    for name, swapped in chosen.items():
        _check_modules(model, name, swapped)
    return chosen


def _check_modules(model: torch.nn.Module, name: str, swapped: list[Any]) -> None:
    """Raise ContractError unless op `name` computes what these modules of `model` compute."""
    from .known import check_known
    from .layers import REPLACEMENTS, replacements

    fits = {}
    for replacement in replacements(name):
        fits[replacement.original()] = replacement.check_fits
        for what in (replacement.original(), *replacement.STANDS_FOR):
            check_known(what)
        got = sum(type(m) is replacement.original() for m in swapped)
        expected = f"one with a {replacement.__name__}, or ops without {name}"
        check(got > 0, "model", got=f"a {type(model).__name__} without one", expected=expected)
    for key, value in REPLACEMENTS[name].REQUIRES.items():
        got = getattr(getattr(model, "config", None), key, None)
        check(got == value, f"{name}: {key} of the model", got=repr(got), expected=repr(value))
    for module in swapped:
        fits[type(module)](module)
        check(
            "forward" not in vars(module),
            f"{type(module).__name__}.forward",
            got="one bound to the module itself, as accelerate's hooks do",
            expected="the class's own: patch the model before it is dispatched",
        )


def _idle(modules: list[Any], names: list[str]) -> set[int]:
    """Ids of modules that never run: parts of one that is swapped, which does their work itself.

    The norms inside mHC modules are of another width than kernels are made for, so they stay as
    they are in any case.
    """
    from .layers import REPLACEMENTS

    projections = tuple(REPLACEMENTS[op].original() for op in ("mhc/pre", "mhc/head"))
    idle = {id(m.input_norm) for m in modules if isinstance(m, projections)}
    if "attention/sparse" in names:
        attention = REPLACEMENTS["attention/sparse"].original()
        parts = (part for m in modules if isinstance(m, attention) for part in m.modules())
        idle |= {id(part) for part in parts if not isinstance(part, attention)}
    return idle
