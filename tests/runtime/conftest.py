"""One small bundle for all tests of the runtime, and tensors for its op mhc/post."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tileproof.codegen.build import build
from tileproof.dsl import get

ARCHS = ("sm_80", "sm_90a")


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """mhc/post, two sinkhorns that only D tells apart, and a norm whose rows may lie apart, at the
    smallest sizes, for two archs."""
    post, sinkhorn, norm = get("mhc/post"), get("mhc/sinkhorn"), get("norm/rmsnorm_unweighted")
    specs = [post.specialize(N=4, D=64), *[sinkhorn.specialize(N=2, D=D) for D in (64, 96)]]
    specs.append(norm.specialize(D=64))
    return build(specs, ARCHS, tmp_path_factory.mktemp("bundles") / "small")


@pytest.fixture
def copied(bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle that a test may damage."""
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


@pytest.fixture
def post_inputs(seed: int) -> Callable[[int], list[torch.Tensor]]:
    """``post_inputs(M)``: seeded inputs x, y, post, comb of mhc/post at N=4, D=64, in bf16."""

    def draw(M: int) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        shapes = [(M, 4, 64), (M, 64), (M, 4), (M, 4, 4)]
        drawn = [torch.randn(shape, generator=generator) for shape in shapes]
        return [drawn[0].bfloat16(), drawn[1].bfloat16(), *drawn[2:]]

    return draw
