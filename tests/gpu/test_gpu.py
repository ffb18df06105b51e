"""On a real card: the same texts and launches as on the virtual GPU give the same results."""

import pytest
import torch

from tileproof.codegen.build import build
from tileproof.dsl import ALL, get
from tileproof.runtime import load

from .card import CardModule, find
from .cases import names
from .comparing import library_ops, op_inputs, run_op, run_program, run_text, worst_of

RUNS = {"text": run_text, "program": run_program, "op": run_op}
CASES = [*names([*ALL]), *((f"op/{name}", arch) for name in library_ops() for arch in ALL)]


def on_card(cuda):
    return CardModule(cuda, find()[0].arch)


@pytest.mark.gpu
@pytest.mark.parametrize(("case", "arch"), CASES)
def test_card_and_virtual_gpu_agree(case, arch, record):
    group, _, name = case.partition("/")
    difference, worst = RUNS[group](name, arch, on_card)
    record(case, arch, difference, worst)
    assert not difference


@pytest.mark.gpu
@pytest.mark.parametrize("name", library_ops())
def test_ops_through_their_launchers(name, tmp_path, record):
    """As they ship: bundle, native launcher, libcuda."""
    assert torch.cuda.is_available(), "this torch is built without CUDA: install one that is not"
    arch = find()[0].arch
    spec = get(name).shape_set("tiny")[0][0]
    bundle = build([spec], [arch], tmp_path / "bundle", jobs=1)
    inputs, results = op_inputs(spec), []
    for backend, device in (("virtual", "cpu"), ("cuda", "cuda")):
        library = load(bundle, backend, arch)
        found = library[name](*[t.to(device) for t in inputs], **dict(spec.params))
        results.append([t.cpu() for t in (found if isinstance(found, tuple) else (found,))])
    difference, worst = worst_of(*results)
    record(f"launcher/{name}", arch, difference, worst)
    assert not difference
