"""Reading and writing DeepSeek-V4 checkpoints, official and of transformers (spec §1, §6.1)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tileproof.dsl import ContractError, check
from tileproof.kernels.quant.reference import (
    fp4_cast,
    fp4_dequant,
    fp8_tile_cast,
    fp8_tile_dequant,
)

from .names import PLAIN, TILE, Entry, Part, canonical, entries

if TYPE_CHECKING:
    from transformers import DeepseekV4Config

Tensors = dict[str, torch.Tensor]
_INDEX = "model.safetensors.index.json"


def read(path: str | Path) -> Tensors:
    """All tensors of the safetensors checkpoint in folder `path`, under official names.

    Raises ContractError where the folder has none, lacks a shard or has a damaged one.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(path)
    if (folder / _INDEX).exists():
        shards = json.loads((folder / _INDEX).read_text())["weight_map"].values()
        files = [folder / name for name in sorted(set(shards))]
    else:
        files = sorted(folder.glob("*.safetensors"))
    check(bool(files), str(folder), got="no *.safetensors", expected="a checkpoint")
    state: Tensors = {}
    for file in files:
        check(file.exists(), str(folder), got=f"no {file.name}", expected=f"what {_INDEX} names")
        try:
            state |= load_file(file)
        except SafetensorError as error:
            raise ContractError(f"{file}: got {error}, expected a whole safetensors file") from None
    return canonical(state)


def official(config: DeepseekV4Config, state: Mapping[str, torch.Tensor]) -> Tensors:
    """`state` as an official checkpoint stores it; plain matrices are quantised (spec §6.1).

    Raises as :func:`plain` does.
    """
    found: Tensors = {}
    for name, entry, tensors in _checked(config, state):
        if len(tensors) == 1 and entry.stored not in PLAIN:
            tensors = _quantized(entry, tensors[0])
        parts = entry.parts(name)
        found |= {p.name: t.to(p.dtype) for p, t in zip(parts, tensors, strict=True)}
    return found


def plain(config: DeepseekV4Config, state: Mapping[str, torch.Tensor]) -> Tensors:
    """`state` with one unquantised tensor for each entry: bfloat16 where it was quantised, exactly.

    Args:
        config: what the model looks like.
        state: tensors under official names, quantised or not.

    Raises ContractError naming the first tensor that is missing, has another shape or type, or
    belongs to no such model. A checkpoint without any ``mtp.`` tensor is a model without MTP.
    """
    return {
        name: _dequantized(entry, *tensors) if len(tensors) > 1 else tensors[0]
        for name, entry, tensors in _checked(config, state)
    }


def write(path: str | Path, config: DeepseekV4Config, state: Mapping[str, torch.Tensor]) -> Path:
    """Write `state` (either form) as an official checkpoint into folder `path`; returns it.

    The folder gets ``config.json`` and ``model.safetensors``. The file appears whole or not at all.
    """
    from safetensors.torch import save_file

    folder = Path(path)
    tensors = {k: t.contiguous() for k, t in official(config, state).items()}
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / ".model.safetensors"
    save_file(tensors, unfinished, {"format": "pt"})
    config.save_pretrained(folder)
    unfinished.rename(folder / "model.safetensors")
    return folder


def _checked(
    config: DeepseekV4Config, state: Mapping[str, torch.Tensor]
) -> list[tuple[str, Entry, list[torch.Tensor]]]:
    """(name, entry, its tensors) of the whole model: all parts of an entry, or one plain matrix."""
    has_mtp = any(name.startswith("mtp.") for name in state)
    found, used = [], set()
    for name, entry in entries(config).items():
        if name.startswith("mtp.") and not has_mtp:
            continue
        parts = list(entry.parts(name))
        if len(parts) > 1 and parts[1].name not in state:
            parts = [Part(name, entry.shape, torch.bfloat16)]
        for part in parts:
            expected = _text(part.shape, part.dtype)
            check(part.name in state, f"checkpoint: {part.name}", got="nothing", expected=expected)
            got = state[part.name]
            fits = tuple(got.shape) == part.shape and _kind(got.dtype) == _kind(part.dtype)
            text = _text(got.shape, got.dtype)
            check(fits, f"checkpoint: {part.name}", got=text, expected=expected)
        used.update(part.name for part in parts)
        found.append((name, entry, [state[part.name] for part in parts]))
    unknown = sorted(set(state) - used)
    expected = "only tensors of the model that its config describes"
    check(not unknown, "checkpoint", got=", ".join(unknown[:3]), expected=expected)
    return found


def _kind(dtype: torch.dtype) -> object:
    """What may stand for each other: floating-point types of two bytes and more, integers."""
    if dtype.is_floating_point:
        return "float" if dtype.itemsize > 1 else dtype
    return "codes" if dtype.itemsize == 1 else "int"


def _text(shape: tuple[int, ...], dtype: torch.dtype) -> str:
    return f"{str(dtype).removeprefix('torch.')} {list(shape)}"


def _quantized(entry: Entry, matrix: torch.Tensor) -> list[torch.Tensor]:
    if entry.stored == "fp4":
        codes, scale = fp4_cast(matrix.float())
        return [codes.view(torch.int8), scale]
    strips = [fp8_tile_cast(rows[None]) for rows in matrix.float().split(TILE)]
    return [torch.cat([codes[0] for codes, _ in strips]), torch.cat([scale for _, scale in strips])]


def _dequantized(entry: Entry, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    if entry.stored == "fp4":
        return fp4_dequant(codes.view(torch.uint8), scale)
    return fp8_values(codes, scale)


def fp8_values(codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """A matrix [N, K] of e4m3 with ue8m0 scales [ceil(N / 128), ceil(K / 128)], in bfloat16."""
    strips = zip(codes.split(TILE), scale, strict=True)
    return torch.cat([fp8_tile_dequant(rows[None], s[None])[0] for rows, s in strips])
