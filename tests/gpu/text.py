"""A case of a few lines: the kernel's body, how it is launched, what it reads and must write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from tileproof.runtime.virtual import TensorMap


@dataclass(frozen=True)
class Text:
    """`grid` blocks of `threads` run `body`: `x` holds the inputs, `y` the outputs (int32 words),
    `shared` is `smem` bytes, `m0`, `m1`, … are the tensor maps.

    archs: whose text it is. That of sm_80 and sm_89 runs on later cards too, compiled for those.
    want: the outputs for given inputs, from the manual; None where other tests of the virtual GPU
        have the oracle. Words that the kernel leaves alone stay -7.
    maps: each of (y, x). times: launches in a row, each of which may begin before its predecessor
        has ended.
    """

    body: str
    words: int
    threads: int = 32
    archs: tuple[str, ...] = ("sm_80",)
    inputs: Callable[[], torch.Tensor] = lambda: torch.arange(1024, dtype=torch.int32)
    want: Callable[[torch.Tensor], torch.Tensor] | None = None
    maps: tuple[Callable[[torch.Tensor, torch.Tensor], TensorMap], ...] = ()
    smem: int = 16384
    grid: int = 1
    cluster: int = 1
    cooperative: bool = False
    times: int = 1

    def kernel(self, name: str) -> str:
        """The CUDA text of the kernel."""
        maps = "".join(f", __grid_constant__ const CUtensorMap m{i}" for i in range(len(self.maps)))
        return (
            f'extern "C" __global__ void __launch_bounds__({self.threads}, 1) '
            f"{name}(int* __restrict__ y, const int* __restrict__ x{maps}) {{\n"
            "  extern __shared__ __align__(1024) uchar shared[];\n"
            f"  int tid = (int)threadIdx.x;\n  {self.body}\n}}\n"
        )

    def launch(self, module, name: str) -> torch.Tensor:
        """The output words. `module`: a ``CardModule``, or what launches as it does."""
        x, y = self.inputs(), torch.full((self.words,), -7, dtype=torch.int32)
        how = {"cluster": (self.cluster,), "cooperative": self.cooperative}
        how |= {"times": self.times} if self.times > 1 else {}
        args = [y, x, *(map_(y, x) for map_ in self.maps)]
        module.launch(name, (self.grid,), (self.threads,), self.smem, args, **how)
        return y
