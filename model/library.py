"""Where a patched model's kernels come from: a bundle, a build on the spot, or torch references."""

from __future__ import annotations

import contextlib
import inspect
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tileproof.dsl import ALL, ContractError, Specialization, arch, check, get
from tileproof.runtime import BundleError, Library, MissingKernel
from tileproof.runtime.backends import choose
from tileproof.runtime.bundle import Bundle
from tileproof.runtime.cache import cache_dir

from .layers import KERNELS, DeepseekV4RMSNorm, products

_ACT = {torch.bfloat16: "bf16", torch.float32: "f32"}


class References:
    """Every op as its torch reference, on any floating-point type and with gradients."""

    backend = "reference"

    def __getattr__(self, stem: str) -> Callable[..., Any]:
        reference = get(stem).reference
        wanted = inspect.signature(reference).parameters

        def call(*tensors: torch.Tensor, **params: Any) -> Any:
            return reference(*tensors, **{k: v for k, v in params.items() if k in wanted})

        setattr(self, stem, call)
        return call


def specializations(
    model: torch.nn.Module, ops: Iterable[str], act: str | None = None
) -> list[Specialization]:
    """The kernels `model` needs for the replacements `ops`, as its config and weights say.

    `act` is the activation type, ``"bf16"`` or ``"f32"``; None reads it off the embedding.
    """
    config = getattr(model, "config", None)
    check(config is not None, "model", got=f"{type(model).__name__} without a config",
          expected="one with the config of its sizes")  # fmt: skip
    if act is None:
        act = _ACT.get(model.get_input_embeddings().weight.dtype)
        if act is None:
            return []  # no kernel takes these activations: each call goes by `on_missing`
    norms = [m for m in model.modules() if isinstance(m, DeepseekV4RMSNorm.original())]
    kinds = {"bf16" if m.weight.dtype == torch.bfloat16 else "f32" for m in norms}
    ops, sizes = list(ops), config.to_dict()
    names = dict.fromkeys(kernel for op in ops for kernel in KERNELS.get(op, (op,)))
    needed = [s for name in names if name != "gemm/dense" for s in get(name).for_model(sizes, act)]
    needed = [s for s in needed if "weight" not in s.types or s.types["weight"] in kinds]
    weights = sorted({weight for op in ops for weight in products(op, sizes)})
    dense = get("gemm/dense")
    made = [dense.specialize(K=K, act=act, out=act if out == "act" else out) for K, out in weights]
    return [*needed, *{s.symbol: s for s in made}.values()]


def open_library(
    model: torch.nn.Module,
    ops: Iterable[str],
    backend: str,
    bundle: str | Path | None,
    arch_name: str | None,
    on_missing: str,
) -> tuple[Any, Callable[[MissingKernel], None] | None]:
    """The library of a patch, and what adds a kernel it turns out to lack (None if nothing may)."""
    if backend == "reference":
        return References(), None
    needed = specializations(model, ops)
    device = next(model.parameters()).device
    return opened(needed, device, backend, bundle, arch_name, on_missing)


def opened(
    needed: list[Specialization],
    device: torch.device,
    backend: str,
    bundle: str | Path | None,
    arch_name: str | None,
    on_missing: str,
) -> tuple[Any, Callable[[MissingKernel], None] | None]:
    """A library with the kernels `needed` on `device`, and what adds one it turns out to lack.

    References where they are asked for, or take every call that no kernel can.
    """
    if backend == "reference":
        return References(), None
    if bundle is None and (on_missing == "reference" or not needed):
        return References(), None
    if backend == "auto":
        backend = "cuda" if device.type == "cuda" else "virtual"
    if bundle is None:
        check(on_missing == "compile", "bundle", got=None, expected="a folder written by"
              ' `tileproof build`, or on_missing="compile"')  # fmt: skip
        arch_name = arch_name or _arch_of(device)
        bundle = built(needed, [arch_name])
    found = Bundle(bundle)
    target = arch_name or (_arch_of(device) if backend == "cuda" else next(iter(found.archs)))
    library = Library(choose(backend, arch_name, found))
    library.add(found)
    lacking = [s for s in needed if not library.has(s.op.name, **_sizes(s))]
    if lacking and on_missing == "compile":
        library.add(built(lacking, [target]))
    check(
        not lacking or on_missing != "error",
        f"{bundle}",
        got=f"a bundle without {', '.join(s.symbol for s in lacking)}",
        expected='a kernel for every size of the model, or on_missing="compile"',
    )

    def add(missing: MissingKernel) -> None:
        op = get(missing.op)
        library.add(built([op.specialize(**_own(op, missing.sizes), **missing.types)], [target]))

    return library, add if on_missing == "compile" else None


class Ops:
    """Runs ops by stem, ``ops("mhc_post", x, y, post, comb)``, as :func:`opened` found them.

    Raises MissingKernel where no kernel fits and none can be compiled.
    """

    def __init__(self, library: Any, add: Callable[[MissingKernel], None] | None) -> None:
        self.library, self.add = library, add

    def __call__(self, op: str, *tensors: torch.Tensor, **params: Any) -> Any:
        run = getattr(self.library, op)
        try:
            return run(*tensors, **params)
        except MissingKernel as missing:
            if self.add is None:
                raise
            self.add(missing)
            return run(*tensors, **params)


def built(
    specs: list[Specialization],
    archs: Sequence[str],
    on_event: Callable[[Any], None] | None = None,
) -> Path:
    """A bundle of `specs` for `archs` in the user's cache, under the hash of its contents.

    `on_event` is called after every kernel, as by ``tileproof.codegen.build.build``.

    Raises ContractError in one sentence where a tool the build needs is missing.
    """
    folder = cache_dir("bundles")
    try:
        from tileproof.codegen.build import build

        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = build(specs, archs, Path(scratch) / "bundle", on_event=on_event)
            target = folder / (made / "manifest.sha256").read_text()[:32]
            with contextlib.suppress(OSError):  # it is there: made before, or by another process
                made.rename(target)
    except (ImportError, RuntimeError) as error:
        raise ContractError(
            f"compiling {len(specs)} kernels for {', '.join(archs)}: got {error}, expected"
            ' pip install "tileproof[build]", a bundle, or on_missing="reference"'
        ) from error
    return target


def _arch_of(device: torch.device) -> str:
    """The architecture to build for `device`; the virtual GPU plays the oldest, being simplest."""
    if device.type != "cuda":
        return ALL[0]
    capability = torch.cuda.get_device_capability(device)
    fitting = [name for name in ALL if capability in arch(name).runs_on]
    if not fitting:
        have = ", ".join(ALL)
        raise BundleError(f"device: got compute capability {capability}, expected one of {have}")
    return fitting[-1]


def _sizes(spec: Specialization) -> dict[str, Any]:
    return {**spec.dims, **spec.types, **spec.params}


def _own(op: Any, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """`sizes` without derived dims, which follow from the others."""
    return {k: v for k, v in sizes.items() if k not in op.dims or op.dims[k].derived is None}
