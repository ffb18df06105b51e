"""CUDA in the place of one kernel's own, for the tests of the PTX route."""

from functools import cache

import tilelang.language as T

from tileproof.codegen.device import compile_ptx
from tileproof.codegen.lower import lower
from tileproof.verify.ptx import prove_text

FACTS = {"dims": {"M": [0, 1 << 20]}, "values": {"index": [0, "M-1"]}, "none": {"index": -1}}


def source():
    """Rows of 128 floats, an index per row: the contract all the CUDA below is held to."""
    M = T.dynamic("M")

    @T.prim_func
    def kernel(
        index: T.Tensor((M,), "int32"),
        x: T.Tensor((M, 128), "float32"),
        y: T.Tensor((M, 128), "float32"),
    ):
        with T.Kernel(T.ceildiv(M, 4), threads=128) as block:
            thread = T.get_thread_binding()
            tile = T.alloc_shared((128,), "float32")
            for i in T.serial(4):
                if block * 4 + i < M:
                    tile[thread] = x[index[block * 4 + i], thread]
                    y[block * 4 + i, thread] = tile[thread]

    return kernel


HEAD = """
extern __shared__ float tile[];
#define KERNEL(name) extern "C" __global__ void __launch_bounds__(128) name( \\
    const int* index, const float* x, float* y, int M)
#define NAMES int t = threadIdx.x, block = blockIdx.x, m = block * 4 + t / 32, lane = t % 32; \\
    (void)lane; (void)m; (void)block;
"""


@cache
def lowered():
    """The kernel whose contract, grid and block the CUDA gets."""
    configs = {"tl.disable_safe_memory_legalize": True}
    return lower(source(), "sm_80", pass_configs=configs, keep_stages=True)


def compiled(bodies):
    """Bodies by the names of their entries, as one PTX module."""
    text = HEAD + "".join(f"KERNEL({name}) {{ NAMES {body} }}\n" for name, body in bodies.items())
    return compile_ptx(text, "sm_80", contract_fma=True)


def run(text, entry):
    """The PTX's `entry` proved in the place of the kernel's own."""
    name = lowered().launches[0].kernel
    changed = text.replace(f" {entry}(", f" {name}(")
    return prove_text(lowered(), changed, facts=FACTS, use_cache=False)
