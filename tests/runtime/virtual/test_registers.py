"""setmaxnreg: a block has the registers of one multiprocessor and no more."""

import pytest
import torch

from tileproof.runtime import virtual

from .support import kernel

BODY = """
    if (tid < 128) {
      if (release) tl::warpgroup_reg_dealloc<24>();
    } else {
      tl::warpgroup_reg_alloc<240>();
    }
    cudaGridDependencySynchronize();
    y[tid] = tid;
    if (tid < 32 && release == 2) { tl::warpgroup_reg_dealloc<40>(); }
    if (tid == 0 && release == 3) tl::warpgroup_reg_dealloc<24>();
    cudaTriggerProgrammaticLaunchCompletion();
"""


def test_registers_are_handed_from_warp_to_warp():
    module = virtual.VirtualModule(kernel("int* y, int release", BODY), checked=True)

    def launch(release: int, threads: int = 384) -> torch.Tensor:
        y = torch.zeros(threads, dtype=torch.int32)
        module.launch("k", (1,), (threads,), 0, [y, release])
        return y

    # 168 each for 384 threads: 24 for one warpgroup leave 240 for the other two.
    assert launch(1).tolist() == list(range(384))
    with pytest.raises(virtual.VirtualError, match="wait on registers other warps must release"):
        launch(0)
    # 120 each for 512 threads: 24 leave 152 for each of three warpgroups.
    with pytest.raises(virtual.VirtualError, match="wait on registers other warps must release"):
        launch(1, 512)
    with pytest.raises(virtual.VirtualError, match=r"dec to 40 registers, .* have at most 24"):
        launch(2)
    with pytest.raises(virtual.VirtualError, match="setmaxnreg"):
        launch(3)
