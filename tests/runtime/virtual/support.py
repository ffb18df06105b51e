"""Small kernels for the tests of the virtual GPU."""

from __future__ import annotations

import torch

from tileproof.runtime import virtual

_HEADERS = (
    "atomic barrier copy copy_sm100 cuda_fp8 debug instruction/mma intrin ldsm math reduce scan"
)
_INCLUDES = "".join(f"#include <tl_templates/cuda/{name}.h>\n" for name in _HEADERS.split())


def kernel(parameters: str, body: str, name: str = "k") -> str:
    """CUDA text of one kernel, in the form TileLang writes it."""
    head = 'extern "C" __global__ void'
    return (
        f"{_INCLUDES}{head} {name}({parameters});\n"
        f"{head} __launch_bounds__(1024, 1) {name}({parameters}) {{\n"
        f"  int tid = (int)threadIdx.x;\n{body}\n}}\n"
    )


def run(
    parameters: str,
    body: str,
    args: list,
    *,
    grid: tuple = (1,),
    block: tuple = (32,),
    smem: int = 0,
    checked: bool = True,
    **options,
) -> None:
    """Builds and launches one kernel; `options` are those of VirtualOptions."""
    module = virtual.VirtualModule(kernel(parameters, body), checked=checked)
    chosen = virtual.VirtualOptions(**options)
    module.launch("k", grid, block, smem, args, options=chosen)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's storage as integers, so that NaNs and signed zeros compare."""
    return tensor.view({1: torch.uint8, 2: torch.int16, 4: torch.int32}[tensor.element_size()])
