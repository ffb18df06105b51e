"""Groups of helpers on every architecture: each computes what NumPy does, or is refused by name."""

import functools

import numpy as np
import pytest
import torch

from tileproof.dsl import ALL
from tileproof.runtime import virtual

from .architectures import CALLS, HEADERS
from .groups import GROUPS, kernel_name, source
from .test_tma import tensor_map


def has(group: str, arch: str) -> bool:
    return GROUPS[group].has[ALL.index(arch)] == "x"


@functools.cache
def module(arch: str) -> virtual.VirtualModule:
    text = source([g for g in GROUPS if has(g, arch)], HEADERS)
    return virtual.VirtualModule(text, arch=arch, checked=False)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("arch", ALL)
def test_a_group_computes_what_numpy_does_or_is_refused(arch, group):
    case = GROUPS[group]
    if not has(group, arch):
        with pytest.raises(virtual.CompileError, match=f"{arch} lacks "):
            virtual.VirtualModule(source([group], HEADERS), arch=arch, checked=False)
        return
    x = case.inputs()
    want = case.oracle(x).astype(np.int32)
    tensor = torch.tensor(x)  # aligned as the allocator does
    launch = {"grid": (1,), **case.launch}
    for options in ({"seed": 0}, {"seed": 1, "late": False}):
        y = torch.full((len(want),), -7, dtype=torch.int32)
        arguments = [y, tensor]
        if case.map:
            box = (32, 1) if "rows" in group else (32, 8)
            arguments.append(tensor_map(tensor.view(32, 32), box))
        module(arch).launch(
            kernel_name(group), block=(case.threads,), smem=65536, args=arguments,
            options=virtual.VirtualOptions(**options), **launch,
        )  # fmt: skip
        assert np.array_equal(y.numpy(), want)


def test_the_rows_of_both_tables_agree():
    """What some architecture lacks has a kernel here, with the same architectures."""
    rows = {}
    for call in CALLS:
        rows.setdefault(call.group, set()).add(call.has)
    here = {group.has for group in GROUPS.values()}
    for name, patterns in rows.items():
        assert patterns & here, f"no kernel runs where {name} exists"
        if name in GROUPS:
            assert GROUPS[name].has in patterns, name
