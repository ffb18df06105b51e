"""wgmma, one instruction at a time, against tables written from the PTX manual."""

import functools

import pytest
import torch

from tileproof.runtime import virtual

from .support import kernel
from .wgmma_tables import CASES, ELEMENTS, a_place, d_place

OPTIONS = [{}, {"late": False, "seed": 1}]


@functools.cache
def module() -> virtual.VirtualModule:
    head = "extern __shared__ __align__(1024) uchar shared[];\n"
    texts = [kernel("int* y, const int* x", head + case.body(), case.name) for case in CASES]
    return virtual.VirtualModule(
        "#include <tl_templates/cuda/instruction/wgmma.h>\n" + "".join(texts), checked=True
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_operands_and_results_lie_where_the_manual_says(case):
    for options in OPTIONS:
        y = torch.full((case.words,), -7, dtype=torch.int32)
        module().launch(
            case.name, (1,), (128,), 131072, [y, case.inputs()],
            options=virtual.VirtualOptions(**options),
        )  # fmt: skip
        assert torch.equal(y, case.want())


def test_the_cases_are_all_there_is():
    """Every type with every source, every swizzle of either operand, both majors."""
    assert {c.element for c in CASES} == set(ELEMENTS)
    assert {c.b_mode for c in CASES} == {c.a_mode for c in CASES} - {None}
    assert len({c.b_mode for c in CASES}) == 8
    stored = {c.element.split()[0] for c in CASES if c.a_mode is None}
    assert {1, 2, 4} == {{"tf32": 4, "f16": 2, "bf16": 2}.get(e, 1) for e in stored}


def test_the_tables_place_every_element_once():
    for size, k in ((4, 8), (2, 16), (1, 32)):
        places = {a_place(t, i, size) for t in range(128) for i in range(64 * k // 128)}
        assert places == {(row, column) for row in range(64) for column in range(k)}
    places = {d_place(t, i) for t in range(128) for i in range(32)}
    assert places == {(row, column) for row in range(64) for column in range(64)}
