"""Execution over a prime field of programs for the matrix units of sm_100a."""

import functools

import numpy as np
import pytest

from tests.runtime.virtual.test_tcgen05_tilelang import block_scaled, from_tensor_memory, gemm
from tileproof.codegen.lower import lower
from tileproof.dsl import Facts
from tileproof.verify import Verdict
from tileproof.verify.field import FaultError, Reference, UnmodelledError, compare_values
from tileproof.verify.field.memory import Memory, element
from tileproof.verify.field.scales import factors
from tileproof.verify.field.tensor import TensorMemory, cells

from .test_tensor_memory import CONFIGS, dropped
from .test_tma import argument, changed, constant, shifted_pointer

# Any exponents: all four of a word count.
FACTS = Facts.from_dict({"values": {"s": [0, 2**32 - 1], "t": [0, 2**32 - 1]}})


def synced(shape, tile, dtype, **options):
    return gemm(shape, tile, dtype, "float32", synced=True, **options)


PROGRAMS = {
    "plain": lambda: synced((128, 128, 128), (128, 64, 64), "bfloat16"),
    "columns": lambda: synced(
        (128, 128, 64), (128, 128, 32), "float16", trans_a=True, trans_b=False
    ),
    "two-multiplies": lambda: synced((256, 64, 32), (256, 64, 32), "bfloat16", threads=256),
    "narrow-line": lambda: synced((128, 96, 32), (128, 96, 16), "bfloat16"),
    "64-rows": lambda: synced((64, 128, 64), (64, 128, 64), "bfloat16"),
    "32-rows": lambda: synced((32, 128, 32), (32, 128, 32), "float16"),
    "half-sums": lambda: gemm(
        (128, 128, 64), (128, 128, 64), "float8_e4m3fn", "float16", synced=True
    ),
    "integers": lambda: gemm((128, 64, 64), (128, 64, 64), "uint8", "int32", synced=True),
    "bytes": lambda: synced((128, 64, 64), (128, 64, 64), "float8_e5m2", trans_a=True),
    "from-tensor-memory": lambda: from_tensor_memory(128, 64),
    "every-other-half": lambda: from_tensor_memory(64, 128),
    "scaled": lambda: block_scaled(128, 128, 128),
    "scaled-wide": lambda: block_scaled(128, 256, 128),
}


# TileLang gives columns back from its producer, for which a barrier of the consumer does not wait.
PIPELINED = synced((256, 128, 256), (128, 128, 64), "bfloat16", stages=2)


@functools.cache
def lowered(name):
    if name != "pipelined":
        return lower(PROGRAMS[name](), "sm_100a", pass_configs=CONFIGS, keep_stages=True)
    kernel = lower(PIPELINED, "sm_100a", keep_stages=True)
    return changed(kernel, "device", "tirx.Evaluate", dropped("tl.ptx_deallocate_tensor_memory"))


@functools.cache
def reference(name):
    return Reference(lowered(name), FACTS, of_source=True)


@pytest.mark.parametrize("name", [*PROGRAMS, "pipelined"])
def test_program_and_source_agree_on_every_schedule(name):
    kernel = lowered(name)
    assert "ptx_tcgen05_mma" in str(kernel.device_mod)
    assert reference(name).anywhere(kernel) is None


@pytest.mark.parametrize("pipelined", [False, True])
def test_columns_given_back_too_early_are_a_fault(pipelined):
    # as TileLang 0.1.15 does: warp 0 gives them back without waiting for the others
    if pipelined:
        kernel = lower(PIPELINED, "sm_100a", keep_stages=True)
    else:
        shape = (128, 64, 32)
        program = gemm(shape, shape, "float16", "float32")
        kernel = lower(program, "sm_100a", pass_configs=CONFIGS, keep_stages=True)
    report = compare_values(kernel, use_cache=False)
    assert report.verdict is Verdict.REFUTED
    (example,) = report.properties["values"].counterexamples
    assert example.message == "column 0 of tensor memory, which is not allocated"


def on(name, position, value):
    """A change of one argument of the calls of an operation."""
    return lambda: ("tirx.Call", argument(f"tl.{name}", position, value))


def gone(name):
    return lambda: ("tirx.Evaluate", dropped(f"tl.{name}"))


def without(bits):
    return lambda e: e - bits


WRONG = {
    "descriptor-offset": ("plain", on("ptx_tcgen05_mma_ss", 2, lambda e: e + 32)),
    "start-of-b": ("plain", on("initialize_tcgen05_descriptor", 1, shifted_pointer(16))),
    "swizzle": ("plain", on("initialize_tcgen05_descriptor", 6, constant(4))),
    "stride": ("plain", on("initialize_tcgen05_descriptor", 3, constant(32))),
    "leading": ("columns", on("initialize_tcgen05_descriptor", 2, constant(64))),
    "column-of-the-result": ("scaled", on("ptx_tcgen05_mma_blockscaled_ss", 6, constant(8))),
    "column-of-a-load": ("32-rows", on("tcgen05_ld", 4, constant(8))),
    "column-of-a-store": ("from-tensor-memory", on("tcgen05_st", 4, constant(8))),
    "column-of-a": ("from-tensor-memory", on("ptx_tcgen05_mma_ts", 2, constant(0))),
    "more-rows": ("64-rows", on("ptx_tcgen05_mma_ss", 7, lambda e: e + (4 << 24))),
    "fewer-columns": ("plain", on("ptx_tcgen05_mma_ss", 7, without(1 << 17))),
    "another-type": ("plain", on("ptx_tcgen05_mma_ss", 7, without((1 << 7) + (1 << 10)))),
    "transposed": ("plain", on("ptx_tcgen05_mma_ss", 7, lambda e: e + (1 << 16))),
    "another-form": ("64-rows", on("ptx_tcgen05_mma_ss", 13, constant(0))),
    "sums-cleared": ("plain", on("ptx_tcgen05_mma_ss", 8, constant(0))),
    "sums-not-cleared": ("plain", on("ptx_tcgen05_mma_ss", 8, constant(1))),
    "number-of-a-scale": ("scaled", on("ptx_tcgen05_mma_blockscaled_ss", 7, constant(144703488))),
    "scales-of-the-other-side": ("scaled", on("ptx_tcgen05_mma_blockscaled_ss", 12, constant(0))),
    "scales-not-copied": ("scaled", gone("ptx_tcgen05_cp_warpx4")),
    "scales-not-arranged": ("scaled", gone("ptx_tcgen05_sf_warp_transpose")),
    "scales-copied-elsewhere": ("scaled", on("ptx_tcgen05_cp_warpx4", 2, lambda e: e + 8)),
    "commit-dropped": ("plain", gone("tcgen05_mma_arrive")),
    "wait-dropped": ("plain", gone("mbarrier_wait_parity")),
    "fence-dropped": ("plain", gone("fence_proxy_async")),
    "multiply-dropped": ("pipelined", gone("ptx_tcgen05_mma_ss")),
    "wait-of-a-pipeline-dropped": ("pipelined", gone("mbarrier_wait_parity")),
}


@pytest.mark.parametrize("case", WRONG)
def test_every_seeded_bug_shows(case):
    name, change = WRONG[case]
    key, rule = change()
    assert reference(name).anywhere(changed(lowered(name), "device", key, rule)) is not None


def test_columns_are_held_once_and_given_back_as_they_were_taken():
    memory = TensorMemory(1)
    block, zero = np.zeros(1, np.int64), np.zeros(1, np.int64)
    assert [memory.take(0, n) for n in (32, 256, 128)] == [0, 32, 288]
    with pytest.raises(FaultError, match="128 columns of tensor memory are asked for"):
        memory.take(0, 128)
    memory.require(block, zero + 32, 256)
    with pytest.raises(FaultError, match="column 32 of tensor memory"):  # another tile's
        memory.require(block, zero, 33)
    with pytest.raises(FaultError, match="32 columns of tensor memory are given back"):
        memory.give_back(0, 32, 32)
    memory.give_back(0, 32, 256)
    with pytest.raises(FaultError, match="column 32 of tensor memory"):
        memory.require(block, zero + 32, 1)
    assert memory.take(0, 64) == 32


@pytest.mark.parametrize(("bits", "lanes"), [(32, 32), (64, 16), (128, 16), (256, 16)])
def test_an_access_touches_each_cell_once(bits, lanes):
    lane, column = cells(bits, 8)
    columns = 8 * bits // 32
    found = np.sort((lane * columns + column).reshape(-1))
    assert found.tolist() == list(range(lanes * columns))


def test_a_scale_is_a_byte_of_a_word_in_every_quarter():
    memory, whole = Memory("m", 1, 128 * 16, ""), np.ones(128, bool)
    word = np.arange(128) % 32 * 2**16 + 7
    memory.store(0, np.arange(128) * 16, element("uint32"), word, whole)
    block = column = np.zeros(1, np.int64)
    found = factors(memory, 16, block, column, 32, 2)[0]
    assert len({*found.tolist()}) == 32 and found[0] == 0
    memory.store(0, np.arange(128) * 16 + 2, element("uint8"), np.arange(128) % 32, whole)
    E = element("float8_e8m0fnu")
    memory.store(0, np.arange(128) * 16 + 1, E, np.arange(128) % 32 + 5, whole)
    assert (factors(memory, 16, block, column, 32, 1)[0] == np.arange(32) + 5).all()
    assert (factors(memory, 16, block, column, 32, 2)[0] == found).all()
    memory.store(0, np.array([16 * 33 + 2]), element("uint8"), np.array([9]), whole[:1])
    with pytest.raises(FaultError, match="differ between quarters"):
        factors(memory, 16, block, column, 32, 2)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (argument("tl.initialize_tcgen05_descriptor", 6, constant(1)), "of swizzle 1"),
        (argument("tl.ptx_tcgen05_mma_ss", 9, constant(1)), "of some lanes"),
        (argument("tl.ptx_tcgen05_mma_ss", 7, lambda e: e + 8), "saturates"),
        (argument("tl.ptx_tcgen05_mma_ss", 7, lambda e: e + (1 << 8)), "with operands"),
        (argument("tl.ptx_tcgen05_mma_ss", 7, lambda e: e - (8 << 24)), "of 0 rows"),
    ],
)
def test_what_is_not_executed_is_named(change, name):
    with pytest.raises(UnmodelledError, match=name):
        reference("plain").difference(changed(lowered("plain"), "device", "tirx.Call", change))
