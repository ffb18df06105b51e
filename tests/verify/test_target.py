"""A user's kernel in a file, found by name."""

import pytest

from tileproof.codegen.target import parse_args, resolve_target
from tileproof.dsl import ContractError
from tileproof.verify import Verdict, prove

SOURCE = """
import tilelang
import tilelang.language as T


def fill(N, value=0.0):
    M = T.dynamic("m")

    @T.prim_func
    def kernel(y: T.Tensor((M, N), "float32")):
        with T.Kernel(M, threads=N) as row:
            y[row, T.get_thread_binding()] = value

    return kernel


@tilelang.jit
def compiled(N):
    return fill(N)


ready = fill(64)
number = 3
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "users.py"
    path.write_text(SOURCE)
    return path


@pytest.mark.parametrize(
    ("name", "args"), [("ready", {}), ("fill", {"N": 64}), ("compiled", {"N": 64})]
)
def test_prim_func_factory_and_jit_function_are_the_same_kernel(file, name, args):
    kernel = resolve_target(f"{file}:{name}", args)
    facts = {"dims": {"m": [0, 1 << 20]}, "written": {"y": "once"}}
    report = prove(kernel, "sm_80", facts=facts, use_cache=False)
    assert report.verdict is Verdict.PROVED
    assert report.kernels[0].properties["coverage"].obligations == 1


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("fill", {}, r"got \[\], expected also \['N'\]"),
        ("fill", {"N": 1, "K": 2}, r"got \['K'\], expected among \['N', 'value'\]"),
        ("ready", {"N": 1}, r"got \['N'\], expected none"),
        ("absent", {}, "got absent, expected one of compiled, fill, ready"),
        ("number", {}, "got int, expected a TileLang kernel"),
    ],
)
def test_one_sentence_says_what_is_wrong(file, name, args, message):
    with pytest.raises(ContractError, match=message) as error:
        resolve_target(f"{file}:{name}", args)
    assert "\n" not in str(error.value)


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(ContractError, match="expected a file that exists"):
        resolve_target(f"{tmp_path}/none.py:kernel")
    broken = tmp_path / "broken.py"
    broken.write_text("1 / 0")
    with pytest.raises(ContractError, match="ZeroDivisionError"):
        resolve_target(f"{broken}:kernel")
    with pytest.raises(ContractError, match=r"expected FILE\.py:NAME"):
        resolve_target("kernel")


def test_arguments_from_the_command_line():
    assert parse_args(["n=128", "dtype=bfloat16", "eps=1e-6", "flag=True"]) == {
        "n": 128,
        "dtype": "bfloat16",
        "eps": 1e-6,
        "flag": True,
    }
    with pytest.raises(ContractError, match="expected key=value"):
        parse_args(["n"])
