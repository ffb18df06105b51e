"""The kernels by name in transformers' registries, for models that nobody patches.

``attn_implementation="tileproof"`` runs the core attention of DeepSeek-V4 and
``experts_implementation="tileproof"`` its routed experts; everything else, dense masks and caches
included, stays transformers'. :func:`tileproof.patch` replaces more, and needs neither.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from tileproof.dsl import check, get

if TYPE_CHECKING:
    import torch

    from .dispatch import Kernels
    from .patch import OnMissing

NAME = "tileproof"


def register(
    backend: str = "auto",
    *,
    bundle: str | Path | None = None,
    arch: str | None = None,
    on_missing: OnMissing = "compile",
) -> None:
    """Make the name ``"tileproof"`` an attention and an experts implementation of transformers.

    Then ``from_pretrained(…, attn_implementation="tileproof", experts_implementation="tileproof")``
    and ``model.set_attn_implementation("tileproof")`` take it. A second call replaces the first.
    Kernels are opened at a model's first forward.

    Args:
        backend: ``auto``, ``cuda``, ``virtual`` or ``reference``, as for :func:`tileproof.load`.
        bundle: the kernels to load; None for those a model needs from the user's cache.
        arch: the architecture the virtual GPU plays, e.g. ``sm_90a``.
        on_missing: what happens where no kernel fits, as for :func:`tileproof.patch`.

    Raises ContractError for a transformers whose DeepSeek-V4 computes something else.
    """
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
    from transformers.models.deepseek_v4 import modeling_deepseek_v4 as hf

    from .known import check_known

    for stood_for in (
        hf.eager_attention_forward,
        hf.DeepseekV4Experts,
        hf.DeepseekV4Experts._apply_gate,
    ):
        check_known(stood_for)
    found = _Registered(backend, bundle, arch, on_missing)
    ALL_ATTENTION_FUNCTIONS.register(NAME, found.attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, eager_mask)
    ALL_EXPERTS_FUNCTIONS.register(NAME, found.experts)


class _Registered:
    """The two implementations, and the libraries they run on."""

    def __init__(self, *where: Any) -> None:
        self._where = where
        self._shared: dict[Any, Kernels] = {}
        self._own: WeakKeyDictionary[Any, dict[Any, Kernels]] = WeakKeyDictionary()

    def kernels(self, module: Any, op: str, x: torch.Tensor) -> Kernels:
        """The ops that `op` runs in `module` for activations like `x`."""
        own = self._own.setdefault(module, {})
        key = (x.dtype, x.device)
        if key not in own:
            own[key] = self._opened(module.config.to_dict(), op, x)
        return own[key]

    def _opened(self, sizes: dict[str, Any], op: str, x: torch.Tensor) -> Kernels:
        from .attention import NAMES
        from .dispatch import Kernels
        from .layers import KERNELS
        from .library import References, opened

        names = ("attention/sparse",) if op == "attention/sparse" else KERNELS[op]
        needed = []
        if x.dtype in NAMES:
            needed = [s for name in names for s in get(name).for_model(sizes, NAMES[x.dtype])]
        key = (x.device, *(s.symbol for s in needed))
        if key not in self._shared:
            backend, bundle, arch, on_missing = self._where
            library, add = opened(needed, x.device, backend, bundle, arch, on_missing)
            fallback = References() if on_missing == "reference" else None
            self._shared[key] = Kernels(library, add, fallback)
        return self._shared[key]

    def attention(
        self,
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        dropout: float = 0.0,
        s_aux: torch.Tensor | None = None,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        """Attention over what the mask shows (spec §3.2).

        Args:
            module: a ``DeepseekV4Attention``.
            query: [B, H, S, D].
            key: [B, 1, L, D], which `value` equals.
            value: the same.
            attention_mask: [B, 1, S, L], 0 where a token sees an entry; None where it sees all.
            dropout: 0.
            s_aux: sinks [H].

        Returns:
            [B, S, H, D] and no weights; zeros for a token that sees nothing.
        """
        from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4Attention

        _check_kind(module, DeepseekV4Attention)
        check(dropout == 0, "attention_dropout", got=dropout, expected="0: it is for inference")
        B, H, S, D = query.shape
        run = self.kernels(module, "attention/sparse", query)
        q = query.transpose(1, 2).reshape(B * S, H, D)
        entries = key.reshape(-1, D)
        near = _rows(attention_mask, B, S, key.shape[2], query.device)
        lists = (entries, near, entries[:0], near[:, :0])
        out = run("attention_sparse", q, *lists, run.weight(s_aux))
        return out.view(B, S, H, D), None

    def experts(
        self, module: Any, x: torch.Tensor, index: torch.Tensor, weight: torch.Tensor
    ) -> torch.Tensor:
        """What a ``DeepseekV4Experts`` gives for x [M, D], experts and their weights [M, K]."""
        from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4Experts

        from .layers import routed

        _check_kind(module, DeepseekV4Experts)
        activation = module.config.hidden_act
        check(activation == "silu", "hidden_act", got=repr(activation), expected="'silu'")
        return routed(module, self.kernels(module, "moe/experts", x), x, index, weight)


def _check_kind(module: Any, kind: type) -> None:
    got = type(module).__name__
    check(isinstance(module, kind), f"implementation {NAME!r}", got=got, expected=kind.__name__)


def _rows(mask: torch.Tensor | None, B: int, S: int, L: int, device: torch.device) -> torch.Tensor:
    """Rows [B S, W] int32 of B L entries that each token sees, in their order, then -1."""
    import torch

    seen = torch.ones(B, S, L, dtype=torch.bool, device=device)
    if mask is not None:
        seen &= mask[:, 0] == 0
    width = int(seen.sum(-1).max()) if seen.numel() else 0
    entry = (~seen).int().argsort(dim=-1, stable=True)[..., :width]
    rows = entry + L * torch.arange(B, device=device)[:, None, None]
    return rows.where(seen.gather(-1, entry), -1).flatten(0, 1).int()
