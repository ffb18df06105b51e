"""TileLang programs in varied styles compute what they should, on every kind of text of them."""

import pytest
import torch

from tileproof.codegen.virtual import compile
from tileproof.dsl import ARCHS
from tileproof.runtime import virtual

from .catalogue import PROGRAMS, RUNS, compare


@pytest.mark.parametrize(("name", "arch"), RUNS)
def test_programs_against_their_oracles(name, arch):
    program = PROGRAMS[name]
    lowered = program.lowered(arch)
    run = compile(lowered, checked=True)
    names = [p.name for p in lowered.parameters]
    for number in range(2):
        drawn = program.draw(lowered, run.written(), number).arguments
        expected = program.oracle(dict(zip(names, drawn, strict=True)))
        with virtual.options(late=number == 0, seed=number):
            run(*drawn)
        results = dict(zip(names, drawn, strict=True))
        assert expected.keys() <= results.keys()
        for output, (want, bound) in expected.items():
            assert not compare(results[output], want, bound), output


def test_every_architecture_is_met():
    assert {arch for _, arch in RUNS} == set(ARCHS)


@pytest.mark.parametrize("bound", [None, torch.full((2,), 0.25).double()])
def test_the_comparison_sees_what_is_wrong(bound):
    right = torch.tensor([1.0, 2.0])
    assert not compare(right.clone(), right, bound)
    for wrong in ([1.0, 2.5], [1.0, torch.nan], [1.0]):
        assert compare(torch.tensor(wrong), right, bound)
