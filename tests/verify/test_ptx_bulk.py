"""The PTX route: the shared side of a TMA copy, from the box of its tensor map."""

import re

import pytest
import tilelang.language as T

from tileproof.codegen.device import compile_ptx
from tileproof.codegen.lower import lower
from tileproof.verify import Verdict
from tileproof.verify.ptx import prove_text

FACTS = {"dims": {"M": [0, 1 << 20]}}
WAYS = {
    "load": r"(cp\.async\.bulk\.tensor\.2d\.shared\S* )\[(%r\d+)\]",
    "store": r"(cp\.async\.bulk\.tensor\.2d\.global.*, )\[(%r\d+)\]",
}


def rows():
    M = T.dynamic("M")

    @T.prim_func
    def kernel(x: T.Tensor((M, 256), "float32"), y: T.Tensor((M, 64), "float32")):
        with T.Kernel(T.ceildiv(M, 32), threads=128) as block:
            tile = T.alloc_shared((32, 64), "float32")
            total = T.alloc_fragment((32, 64), "float32")
            out = T.alloc_shared((32, 64), "float32")
            T.clear(total)
            for k in T.Pipelined(4, num_stages=2):
                T.copy(x[block * 32, k * 64], tile)
                for i, j in T.Parallel(32, 64):
                    total[i, j] += tile[i, j]
            T.copy(total, out)
            T.copy(out, y[block * 32, 0])

    return kernel


@pytest.fixture(scope="module")
def copied():
    kernel = lower(rows(), "sm_90a", keep_stages=True)
    return kernel, compile_ptx(kernel.cuda, "sm_90a", contract_fma=True)


def test_copies_are_proved(copied):
    kernel, text = copied
    assert all(re.search(way, text) for way in WAYS.values())
    report = prove_text(kernel, text, facts=FACTS, use_cache=False)
    assert report.verdict is Verdict.PROVED, report
    assert report.unmodelled == []


@pytest.mark.parametrize(("shift", "wrong"), [(1 << 17, "bounds"), (64, "alignment")])
@pytest.mark.parametrize("way", WAYS)
def test_a_box_in_the_wrong_place_is_found(copied, way, shift, wrong):
    """ALARM, not REFUTED: which thread elect.sync chooses is not tracked, so none is replayed."""
    kernel, text = copied
    changed, count = re.subn(WAYS[way], rf"\1[\2+{shift}]", text, count=1)
    assert count == 1
    found = prove_text(kernel, changed, facts=FACTS, use_cache=False).properties[wrong]
    assert found.verdict is Verdict.ALARM, found
    assert "cp.async.bulk.tensor" in found.counterexamples[0].site


def test_a_copy_that_is_not_modelled_is_named(copied):
    kernel, text = copied
    changed = text.replace(".2d.shared::cta.global", ".2d.shared::cluster.global")
    report = prove_text(kernel, changed, facts=FACTS, use_cache=False)
    assert report.verdict is Verdict.UNKNOWN
    assert any("cp.async.bulk.tensor.2d.shared::cluster" in name for name in report.unmodelled)
