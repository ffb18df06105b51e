"""What a block may ask for, and what a program says of itself: just inside and just outside."""

import pytest
import tilelang.language as T

from tileproof.codegen.lower import lower
from tileproof.verify import Verdict, prove_lowered

CONFIGS = {"tl.disable_safe_memory_legalize": True}


def staged(size, threads=128):
    """A block that asks for `size` bytes of shared memory."""
    M = T.dynamic("M")

    @T.prim_func
    def kernel(x: T.Tensor((M, threads), "uint8"), y: T.Tensor((M, threads), "uint8")):
        with T.Kernel(M, threads=threads) as m:
            buffer = T.alloc_shared((size,), "uint8")
            thread = T.get_thread_binding()
            buffer[thread] = x[m, thread]
            T.sync_threads()
            y[m, thread] = buffer[threads - 1 - thread]

    return kernel


def grid(axis):
    """M blocks along an axis of the grid."""
    M = T.dynamic("M")

    @T.prim_func
    def kernel(y: T.Tensor((M,), "float32")):
        with T.Kernel(*([1] * axis), M, threads=1) as blocks:
            y[(blocks if axis == 0 else blocks[axis])] = 0.0

    return kernel


def arrays(count):
    """Each thread keeps `count` floats."""
    M = T.dynamic("M")

    @T.prim_func
    def kernel(x: T.Tensor((M, count), "float32"), y: T.Tensor((M, count), "float32")):
        with T.Kernel(M, threads=1) as m:
            kept = T.alloc_local((count,), "float32")
            for i in T.serial(count):
                kept[i] = x[m, i]
            for i in T.serial(count):
                y[m, i] = kept[count - 1 - i]

    return kernel


def claimed(assumes=None, asserts=None):
    """Rows are picked by an index tensor, of which the kernel itself says something."""
    M, R = T.dynamic("M"), T.dynamic("R")

    @T.prim_func
    def kernel(
        x: T.Tensor((R,), "float32"), rows: T.Tensor((M,), "int32"), y: T.Tensor((M,), "float32")
    ):
        with T.Kernel(M, threads=1) as m:
            if asserts is not None:
                T.device_assert(asserts(rows[m], R, M))
            if assumes is not None:
                T.assume(assumes(rows[m], R, M))
            y[m] = x[rows[m]]

    return kernel


def prove(kernel, arch="sm_80", **facts):
    lowered = lower(kernel, arch, pass_configs=CONFIGS, keep_stages=True)
    return prove_lowered(lowered, facts=facts, use_cache=False)


@pytest.mark.parametrize(
    ("arch", "most"), [("sm_80", 163), ("sm_89", 99), ("sm_90a", 227), ("sm_120a", 99)]
)
def test_shared_memory_of_an_architecture(arch, most):
    assert prove(staged(most * 1024), arch).properties["limits"].verdict is Verdict.PROVED
    outside = prove(staged(most * 1024 + 16), arch).properties["limits"]
    assert outside.verdict is Verdict.REFUTED
    expected = f"on {arch}: {most * 1024 + 16}, expected 0 to {most * 1024}"
    assert expected in outside.counterexamples[0].message


def test_a_proof_is_not_shared_with_an_architecture_that_has_less(tmp_path, monkeypatch):
    monkeypatch.setenv("TILEPROOF_CACHE", str(tmp_path))
    verdicts = {}
    for arch in ("sm_80", "sm_89"):
        lowered = lower(staged(120 * 1024), arch, pass_configs=CONFIGS, keep_stages=True)
        verdicts[arch] = prove_lowered(lowered).properties["limits"].verdict
    assert verdicts == {"sm_80": Verdict.PROVED, "sm_89": Verdict.REFUTED}


def test_threads_of_a_block():
    assert prove(staged(2048, 1024)).properties["limits"].verdict is Verdict.PROVED
    limits = prove(staged(2048, 1056)).properties["limits"]
    assert limits.verdict is Verdict.REFUTED
    assert "threads of a block on sm_80: 1056" in " ".join(limits.reasons)


@pytest.mark.parametrize(("axis", "most"), [(1, 65535), (2, 65535)])
def test_the_grid_is_within_its_limits_for_every_size(axis, most):
    inside = prove(grid(axis), dims={"M": [0, most]}).properties["limits"]
    assert inside.verdict is Verdict.PROVED
    outside = prove(grid(axis), dims={"M": [0, 1 << 20]}).properties["limits"]
    assert outside.verdict is Verdict.REFUTED
    assert outside.counterexamples[0].sizes == {"M": most + 1}


def test_arrays_beyond_the_registers_are_a_warning_and_no_defect():
    assert not any("spill" in note for note in prove(arrays(255)).notes)
    report = prove(arrays(256))
    assert any("1024 bytes" in note and "spill" in note for note in report.notes)
    assert report.properties["limits"].verdict is Verdict.PROVED


SIZES = {"dims": {"M": [0, 100], "R": [0, 100]}}
IN_RANGE = {"values": {"rows": ["0", "R-1"]}}


@pytest.mark.parametrize(
    ("kernel", "facts", "asserts", "bounds"),
    [
        # An assumption that the contract implies is known; alone, it is named.
        (claimed(lambda v, R, M: v < R), IN_RANGE, Verdict.PROVED, Verdict.PROVED),
        (claimed(lambda v, R, M: v < R), {}, Verdict.ALARM, Verdict.ALARM),
        (claimed(lambda v, R, M: v < R - 1), IN_RANGE, Verdict.ALARM, Verdict.PROVED),
        # After an assertion its condition holds, for what comes next and for an assumption.
        (
            claimed(asserts=lambda v, R, M: T.And(v >= 0, v < R)),
            {},
            Verdict.ALARM,
            Verdict.PROVED,
        ),
        (
            claimed(lambda v, R, M: v < R, lambda v, R, M: T.And(v >= 0, v < R)),
            IN_RANGE,
            Verdict.PROVED,
            Verdict.PROVED,
        ),
    ],
)
def test_what_a_program_claims(kernel, facts, asserts, bounds):
    properties = prove(kernel, **SIZES, **facts).properties
    assert properties["asserts"].verdict is asserts, properties["asserts"]
    assert properties["bounds"].verdict is bounds, properties["bounds"]


def test_an_assertion_on_sizes_is_proved_or_refuted():
    kernel = claimed(asserts=lambda v, R, M: M <= 50)
    facts = {"values": {"rows": ["0", "R-1"]}}
    fits = prove(kernel, dims={"M": [0, 50], "R": [1, 9]}, **facts)
    assert fits.properties["asserts"].verdict is Verdict.PROVED
    fails = prove(kernel, dims={"M": [0, 51], "R": [1, 9]}, **facts).properties["asserts"]
    assert fails.verdict is Verdict.REFUTED
    assert fails.counterexamples[0].sizes["M"] == 51


def test_contradictory_element_contracts_are_an_error():
    """No index is in 0..R-1 where R is 0 alone: everything would follow."""
    report = prove(claimed(), dims={"M": [0, 9], "R": [0, 0]}, **IN_RANGE)
    assert report.verdict is Verdict.ERROR and "no value meets that of rows" in report.error
    report = prove(claimed(), dims={"M": [0, 9], "R": [0, 1]}, **IN_RANGE)
    assert report.verdict is Verdict.PROVED


@pytest.mark.parametrize(("most", "verdict"), [(511, Verdict.PROVED), (512, Verdict.ALARM)])
def test_the_shape_of_a_tensor_that_no_kernel_uses_is_read_on_the_host(most, verdict):
    """TileLang takes null for such a tensor; of one that is there it casts the extent to int32."""
    M = T.dynamic("M")

    @T.prim_func
    def kernel(unused: T.Tensor((M * 4194304,), "float32"), y: T.Tensor((M,), "float32")):
        with T.Kernel(M, threads=1) as m:
            y[m] = 0.0

    assert prove(kernel, dims={"M": [0, most]}).properties["overflow"].verdict is verdict
