"""``tileproof bench model``: what it measures and counts, at sizes of seconds."""

import json

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from typer.testing import CliRunner

import tileproof
from tileproof.bench import launches, minimum, model, prefill
from tileproof.cli import app
from tileproof.dsl import get, load_library
from tileproof.model import attention
from tileproof.model.checkpoint import tiny_model


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that was made, or copied into."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for made in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(made, torch.Tensor) and not launches.is_view(func):
                self.elements = max(self.elements, made.numel())
        return out


def largest(patched, tokens):
    net = tiny_model(0, 256)
    if patched:
        tileproof.patch(net, "reference")
    with torch.no_grad(), Largest() as found:
        net(torch.arange(tokens)[None] % 256, logits_to_keep=1)
    return found.elements


def test_no_tensor_of_the_reference_backend_grows_faster_than_the_prompt(monkeypatch):
    monkeypatch.setattr(attention, "AT_ONCE", 1 << 11)  # blocks of scores, at these sizes too
    short, long = (largest(True, S) for S in (256, 512))
    assert long <= 2 * short
    assert largest(False, 512) > 3 * largest(False, 256)  # what the judge finds in transformers


def test_launches_of_a_decode_step():
    rows = {row["case"]: row for row in launches.measure()}
    theirs, ours, official = (rows[name] for name in launches.SIDES)
    assert theirs["kernels"] == 0
    assert ours["launches"] < theirs["launches"] / 3
    for row in (ours, official):
        assert row["launches"] == row["kernels"] + row["torch"]
        assert row["kernels"] > 100


def test_a_launch_is_no_view_no_allocation_and_nothing_inside_an_op():
    class Library:
        backend = "reference"

        def double(self, x):
            return (x + x).clone()

    counted = launches.Launches()
    library = counted.counted(Library())
    x = torch.ones(4, 4)
    with torch.no_grad(), counted:
        y = torch.empty_like(x).view(-1)[:2].reshape(1, 2)
        torch.nn.functional.linear(y, x[:, :2]) + 1
        library.double(x).mul_(2)
    assert counted.torch_ops == {"mm": 1, "add": 1, "mul_": 1}
    assert counted.kernels == {"double": 1}


@pytest.fixture
def tiny(monkeypatch):
    small = {"hidden_size": 64, "head_dim": 32, "qk_rope_head_dim": 8, "index_head_dim": 16}
    monkeypatch.setattr(prefill, "LAYER", prefill.LAYER | small)
    monkeypatch.setattr(prefill, "apart", lambda what, *arguments: what(*arguments))


def test_both_sides_of_a_prefill_are_measured(tiny):
    rows = prefill.measure(512, [256], rounds=1)
    assert [row["case"] for row in rows] == [
        f"CSA layer, 512 tokens, {prefill.HF}",
        f"CSA layer, 512 tokens, {prefill.OURS}",
        f"five layers, 256 tokens, {prefill.OURS}",
    ]
    assert all(row["seconds"] > 0 for row in rows)
    assert abs(rows[1]["MiB"]) < 64  # in this process what earlier calls freed is taken again
    assert rows[1]["faster"] == rows[0]["seconds"] / rows[1]["seconds"]


def test_both_sides_compute_the_same(tiny, monkeypatch):
    made = []
    monkeypatch.setattr(prefill, "_measured", lambda call, tokens: made.append(call(tokens)()[0]))
    with torch.no_grad():
        prefill.layer(prefill.HF, 300)
        prefill.layer(prefill.OURS, 300)
    torch.testing.assert_close(*made, rtol=1e-4, atol=1e-5)


def ones_of(megabytes):
    return lambda: torch.ones(megabytes << 18).sum()


def test_memory_is_the_peak_over_what_was_there_before():
    # Apart, as the benchmark does: in this process malloc may hold what earlier tests freed.
    found = prefill.apart(prefill._measured, ones_of, 200)
    assert 199 < found["MiB"] < 202


def test_tables_are_printed_one_after_the_other(monkeypatch):
    tables = {"a": [{"case": "x", "n": 1}], "b": [{"case": "y", "MiB": 2.5}]}
    monkeypatch.setattr(model, "measure", lambda: tables)
    done = CliRunner().invoke(app, ["bench", "model", "--json"])
    assert json.loads(done.stdout)["model"] == tables
    words = CliRunner().invoke(app, ["bench", "model"]).stdout.split()
    assert words[:8] == ["case", "n", "x", "1", "case", "MiB", "y", "2.5"]


def test_the_least_of_an_op_is_what_its_lists_name():
    op = get("attention/sparse")
    shapes = {"q": (2, 3, 8), "window": (9, 8), "near": (2, 4), "pool": (7, 8), "chosen": (2, 2)}
    held = {name: torch.zeros(shape) for name, shape in shapes.items()}
    held["near"] = torch.tensor([[4, 5, -1, -1], [4, 5, 6, 7]], dtype=torch.int32)
    held["chosen"] = torch.tensor([[-1, -1], [-1, 2]], dtype=torch.int32)
    held |= {"sink": torch.zeros(3), "out": torch.zeros(2, 3, 8)}
    lists, plain = 4 * (8 + 4), 4 * (48 + 3 + 48)
    assert minimum.least(op, held) == lists + plain + 4 * 8 * (4 + 1)


def test_every_op_has_a_problem_at_both_sizes():
    for op in load_library().values():
        for size in ("flash", "pro"):
            _, run = minimum.problem(op, size)
            assert set(run.dims) <= set(op.dims)
            assert set(run.given) <= {a.name for a in op.args}, op.name


def test_an_op_that_streams_asks_for_the_least():
    (row,) = minimum.measure(["tiny"], ["norm/rmsnorm_unweighted"])
    assert row["case"] == "norm/rmsnorm_unweighted tiny"
    assert row["asked"] == row["touched"] == 1
    assert row["spilled"] == 0 < row["registers"]


@pytest.mark.parametrize(
    "name", ["moe/combine", "moe/swiglu_fp8", "rope/rotate", "rope/rotate_fp4"]
)
def test_whole_sectors_are_asked_for_once(name):
    (row,) = minimum.measure(["flash"], [name])
    assert row["asked"] < 1.1


def test_a_row_and_its_norm_weights_are_read_by_vectors():
    (row,) = minimum.measure(["flash"], ["norm/kv_row"])
    assert row["asked"] < 2


def test_windows_of_a_prompt_list_each_token_once():
    (row,) = minimum.measure(["pro"], ["compressor/pool_row"])
    assert row["touched"] == 1
    assert row["asked"] < 1.5  # a third are biases, which entries share
