"""mma.sync with the fragment tables of the PTX manual, and what else moves fragments."""

import functools
import importlib.util
import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from tileproof.runtime import virtual

from .mma_tables import CASES, FRAGMENTS, SCALED, c8, c16, places
from .support import kernel, run


@functools.cache
def module() -> virtual.VirtualModule:
    texts = [kernel("int* y, const int* x", case.body(), case.name) for case in CASES + SCALED]
    return virtual.VirtualModule("".join(texts), checked=True)


@pytest.mark.parametrize("case", CASES + SCALED, ids=lambda case: case.name)
def test_every_lane_holds_what_the_manual_says(case):
    y = torch.full((case.words,), -7, dtype=torch.int32)
    module().launch(case.name, (1,), (32,), 0, [y, case.inputs()])
    assert torch.equal(y, case.want())


def test_the_cases_are_all_that_tilelang_can_emit():
    package = importlib.util.find_spec("tilelang")
    templates = Path(package.origin).parent / "src/tl_templates/cuda/instruction/mma.h"
    entry = r"TL_DEFINE_MMA_DISPATCHER\((k\w+), (k\w+), (k\w+), (\d+), 8, (\d+),"
    defined = re.findall(entry, re.sub(r"\s+", " ", templates.read_text()))
    assert sorted((c.a, c.b, c.c, str(c.m), str(c.k)) for c in CASES) == sorted(defined)


@pytest.mark.parametrize(
    "more",
    [("kBFloat16", "kFloat32", 16, 8), ("kInt8", "kInt32", 16, 16), ("kFloat16", "kFloat32", 8, 4)],
)
def test_what_tilelang_cannot_emit_does_not_compile(more):
    """PTX has the first two; TileLang's templates do not, so their text fails on hardware too."""
    ab, c, m, k = more
    types = f"tl::DataType::{ab}, tl::DataType::{ab}, tl::DataType::{c}"
    call = f"tl::mma_sync<{types}, {m}, 8, {k}, false, true>(c, a, b);"
    body = f"unsigned a[4], b[4]; float c[4]; {call}"
    with pytest.raises(virtual.CompileError, match=r"does not model this mma\.sync"):
        virtual.VirtualModule(kernel("int* y", body))


def test_the_tables_place_every_element_once():
    for (m, k, _), (a_of, b_of, a_count, b_count) in FRAGMENTS.items():
        a, b = places(a_of, a_count), places(b_of, b_count)
        assert sorted(zip(*a, strict=True)) == sorted(itertools.product(range(m), range(k)))
        assert sorted(zip(*b, strict=True)) == sorted(itertools.product(range(k), range(8)))
    for m, c_of in ((8, c8), (16, c16)):
        c = places(c_of, m // 4)
        assert sorted(zip(*c, strict=True)) == sorted(itertools.product(range(m), range(8)))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_byte_stmatrix_stores_the_transpose(count):
    # PTX ISA, "stmatrix" .m16n8: lane l holds rows l/4 and l/4 + 8, columns 2(l%4) and + 1
    fragments = np.zeros((32, count, 4), np.uint8)
    matrices = np.random.default_rng(0).integers(0, 256, (count, 16, 8)).astype(np.uint8)
    for lane, matrix, e in itertools.product(range(32), range(count), range(4)):
        row, column = lane // 4 + 8 * (e // 2), lane % 4 * 2 + e % 2
        fragments[lane, matrix, e] = matrices[matrix, row, column]
    y = torch.zeros(count * 128, dtype=torch.uint8)
    values = ", ".join(f"r[{i}]" for i in range(count))
    run(
        "unsigned char* y, const int* x",
        f"""
        extern __shared__ __align__(1024) unsigned char s[];
        int r[{count}];
        for (int i = 0; i < {count}; ++i) r[i] = x[tid * {count} + i];
        tl::ptx_stmatrix_m16n8_x{count}_trans(s + tid % {count * 8} * 16, {values});
        __syncthreads();
        for (int i = tid; i < {count * 128}; i += 32) y[i] = s[i];
        """,
        [y, torch.from_numpy(fragments.reshape(32, -1).view(np.int32))],
        smem=count * 128,
    )
    want = matrices.transpose(0, 2, 1)
    np.testing.assert_array_equal(y.numpy().reshape(count, 8, 16), want)
