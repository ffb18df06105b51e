"""attention/paged for few tokens: each by a cluster of blocks, with the same bits (spec §3.2)."""

from tileproof.dsl import Op
from tileproof.kernels.row_stream import MATRIX_OPTIONS, WGMMA_OPTIONS

from . import paged, reference
from .form import SPREAD

op = Op(
    "attention/paged_cluster",
    args=paged.op.args,
    dims=paged.op.dims,
    doc="attention/paged with each token's channels spread over a cluster of blocks (spec §3.2)",
    reference=reference.paged,
    shapes={
        **paged.op.shapes,
        "tiny": {**paged.op.shapes["tiny"], "spread": 2},
        "edge": {**paged.op.shapes["edge"], "spread": 2},
    },
    params={"spread": SPREAD},
    model_sizes=paged.model_sizes,
    reduces=paged.op.reduces,
)

# sm_80 and sm_89 have no clusters; there the heads are spread over blocks.
_HEADS = {"heads": 64, "wgmma": False}
op.kernel(**WGMMA_OPTIONS, archs=("sm_90a",), heads=64, wgmma=True, cluster=True)(paged.paged)
op.kernel(**MATRIX_OPTIONS, archs=("sm_100a", "sm_120a"), **_HEADS, cluster=True)(paged.paged)
op.kernel(**MATRIX_OPTIONS, archs=("sm_80",), **_HEADS, cluster=False)(paged.paged)
op.kernel(**MATRIX_OPTIONS, archs=("sm_89",), heads=32, wgmma=False, cluster=False)(paged.paged)
