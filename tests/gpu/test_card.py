"""How a card is driven: a stand-in for libcuda, by CUDA's own header, notes every call."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tileproof.codegen.toolchain import cuda_tool

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CASES = ("cooperative_grid", "cluster_multicast", "tma_im2col", "tma_five_dimensions",
         "griddepcontrol", "wgmma_f16_n16_32B_none", "tma_store_and_add")  # fmt: skip
SCRIPT = f"""
from tests.gpu.card import CardModule, find
from tests.gpu.cases import TEXTS, cuda
card, reason = find()
print(card, reason)
if card is None: raise SystemExit
modules = {{}}
for name in {CASES}:
    arch = "sm_80" if name == "cooperative_grid" else "sm_90a"
    if arch not in modules: modules[arch] = CardModule(cuda(arch), "sm_90a")
    print(TEXTS[name].launch(modules[arch], name)[:2].tolist())
"""


@pytest.fixture(scope="module")
def libcuda(tmp_path_factory):
    """The folder of the stand-in."""
    folder = tmp_path_factory.mktemp("libcuda")
    sources = [HERE / "mock_libcuda.c", ROOT / "tests/runtime/mock_libcuda.c"]
    include = Path(cuda_tool("nvcc", "pip")).parents[1] / "include"
    command = ["gcc", "-shared", "-fPIC", "-w", f"-I{include}", "-o", folder / "libcuda.so.1"]
    subprocess.run([*command, *sources], check=True)
    return folder


@pytest.fixture
def run(libcuda, tmp_path):
    """``run(fail="")`` → (lines printed, recorded calls, what is on stderr)."""

    def start(fail=""):
        log = tmp_path / "calls"
        log.write_text("")
        environment = os.environ | {
            "LD_LIBRARY_PATH": str(libcuda),
            "MOCK_CUDA_LOG": str(log),
            "MOCK_CUDA_CAPABILITY": "90",
            "MOCK_CUDA_FAIL": fail,
        }
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment,
            cwd=ROOT,
        )  # fmt: skip
        return done.stdout.splitlines(), log.read_text().splitlines(), done.stderr

    return start


def test_launches_clusters_and_tensor_maps_reach_the_driver(run):
    out, calls, errors = run()
    assert out, errors
    assert out[0] == "Card(name='A card of paper', driver='13.2', capability=(9, 0)) "
    # A launch adds 1 to the first output word (-7) of what was copied to the card.
    counts = dict(zip(CASES, out[1:], strict=True))
    assert counts.pop("griddepcontrol") == "[-4, -7]"
    assert set(counts.values()) == {"[-6, -7]"}

    def only(word):
        return [call.partition(" ")[2] for call in calls if call.startswith(word + " ")]

    def line(grid="1", block="32", smem="16384", cluster="1", cooperative=0, overlap=0):
        return (
            f"1 grid {grid} 1 1 block {block} 1 1 smem {smem} stream (nil) cluster {cluster} 1 1"
            f" cooperative {cooperative} overlap {overlap} extra (nil)"
        )

    assert only("cuLaunchKernelEx") == [
        line(grid="8", cooperative=1),
        line(grid="4", cluster="2"),
        line(),
        line(),
        *(line(overlap=int(number > 0)) for number in range(3)),
        line(block="128", smem="131072"),
        line(),
    ]
    assert only("cuFuncSetAttribute") == ["1 8 131072"]
    # float32 is type 7, float16 6, int32 3; the innermost dimension comes first.
    assert only("cuTensorMapEncodeTiled") == [
        "aligned 1 type 3 rank 2 extents 8..128 strides 32..32 box 8..8 steps 1..1 how 0 0 0 0",
        "aligned 1 type 3 rank 5 extents 8..3 strides 32..3840 box 4..2 steps 1..1 how 0 0 0 0",
        "aligned 1 type 7 rank 2 extents 8..4 strides 32..32 box 8..3 steps 1..1 how 0 0 0 0",
    ]
    assert only("cuTensorMapEncodeIm2col") == [
        "aligned 1 type 6 rank 4 extents 32..2 strides 64..1920 lower -1 -1 upper -1 -1"
        " channels 32 pixels 10 steps 1..1 how 0 0 0 0"
    ]
    # The output that is written through a map is the memory of `y`: two copies each way, not three.
    last = len(calls) - 1 - calls[::-1].index("cuModuleGetFunction 1 tma_store_and_add")
    sizes = [call.split()[1] for call in calls[last:] if call.startswith("cuMemAlloc")]
    assert sizes == ["128", "4096"]
    assert len(only("cuMemAlloc")) == len(only("cuMemFree")) == 2 * len(CASES)


def test_what_fails_is_named_and_memory_is_given_back(run):
    _, calls, errors = run("cuLaunchKernelEx:700")
    assert "CardError: cuLaunchKernelEx: 700 (an illegal memory access was encountered)" in errors
    assert sum(c.startswith("cuMemAlloc") for c in calls) == 2
    assert sum(c.startswith("cuMemFree") for c in calls) == 2
    out, _, _ = run("cuDevicePrimaryCtxRetain:2")
    assert out == ["None cuDevicePrimaryCtxRetain: 2 (out of memory)"]
