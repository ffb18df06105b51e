"""Kernels lowered with TileLang's default passes for sm_90a and later: what their tensor maps,
tiled copies, mbarriers and matrix descriptors touch, and the neighbours that touch too much."""

from dataclasses import replace

import pytest

from tileproof.codegen.lower import lower
from tileproof.codegen.target import resolve_target
from tileproof.verify import Verdict, prove_lowered
from tileproof.verify.props import PROPERTIES

PROGRAMS = "tests/runtime/virtual/programs"
MEMORY = [p.name for p in PROPERTIES if not p.ordered]
FACTS = {"dims": {"m": [1, 1 << 20]}, "written": {"C": "once"}}


@pytest.fixture(scope="module")
def gemms():
    """The same GEMM for an architecture with wgmma and one without."""
    source = resolve_target(f"{PROGRAMS}/tma_gemm.py:tma_gemm", {"stages": 2})
    return {arch: lower(source, arch, keep_stages=True) for arch in ("sm_90a", "sm_120a")}


def decide(lowered, **facts):
    return prove_lowered(lowered, facts={**FACTS, **facts}, use_cache=False)


def verdicts(report):
    return {name: report.properties[name].verdict for name in MEMORY}


@pytest.mark.parametrize("arch", ["sm_90a", "sm_120a"])
def test_memory_is_proved(gemms, arch):
    report = decide(gemms[arch])
    assert {verdicts(report)[n] for n in ("bounds", "maps", "coverage")} == {Verdict.PROVED}
    assert set(verdicts(report).values()) <= {Verdict.PROVED, Verdict.NOT_APPLICABLE}


def test_a_tensor_without_rows_has_no_tensor_map(gemms):
    """cuTensorMapEncodeTiled takes no extent of 0, so the call fails for a size of the domain."""
    maps = decide(gemms["sm_90a"], dims={"m": [0, 1 << 20]}).properties["maps"]
    assert maps.verdict is Verdict.REFUTED
    assert {e.sizes["m"] for e in maps.counterexamples} == {0}
    assert "extent of dimension 1 of tensor map A_desc is 0" in maps.counterexamples[0].message


# -- one node changed -----------------------------------------------------------------------------


def called(n, name):
    return type(n).__name__ == "Call" and str(n.op.name) == name


def changed(lowered, where, key, change):
    """The kernel with every node that `change` replaces; at least one."""
    from tilelang import tvm

    hits = []

    def post(n):
        new = change(n)
        hits.extend([n] if new is not None else [])
        return new

    mod = getattr(lowered, f"{where}_mod")
    functions = {
        g: f.with_body(tvm.tirx.stmt_functor.ir_transform(f.body, None, post, [key]))
        for g, f in mod.functions_items()
    }
    assert hits, "the change found nothing to change"
    return replace(lowered, **{f"{where}_mod": tvm.IRModule(functions)})


def argument(name, position, value, of=""):
    """A change of one argument of a call, to what `value` makes of it."""
    from tilelang import tvm

    def change(n):
        if not called(n, name) or not str(n.args[0]).startswith(of):
            return None
        args = list(n.args)
        args[position] = value(args[position])
        return tvm.tirx.Call(n.dtype, n.op, args)

    return change


def encoding(of, position, value, kind="tiled"):
    """A change of one argument of cuTensorMapEncodeTiled: 2 extents from 5 on, 2 strides from 7,
    a box from 9, element strides from 11; or of one of another kind."""
    from tilelang import tvm

    def change(n):
        if not called(n, "tirx.tvm_call_packed"):
            return None
        if str(n.args[0].value) != f"__tvm_tensormap_create_{kind}" or str(n.args[1].name) != of:
            return None
        args = list(n.args)
        args[position] = value(args[position])
        return tvm.tirx.Call(n.dtype, n.op, args)

    return change


def shifted_pointer(amount):
    from tilelang import tvm

    def value(pointer):
        args = list(pointer.args)
        args[2] = args[2] + amount
        return tvm.tirx.Call(pointer.dtype, pointer.op, args)

    return value


def shifted_load(amount):
    from tilelang import tvm

    return lambda n: tvm.tirx.BufferLoad(n.buffer, [n.indices[0] + amount])


def unelected(n):
    from tilelang import tvm

    return tvm.tirx.const(True, "bool") if called(n, "tl.tl_shuffle_elect") else None


def constant(number):
    from tilelang import tvm

    return lambda e: tvm.tirx.IntImm(str(e.dtype), number)


OUTSIDE = {
    "store-next-tile": (
        "device", lambda: argument("tl.tma_store", 3, lambda e: e + 64), "coverage"),
    "store-two-columns-early": (
        "device", lambda: argument("tl.tma_store", 2, lambda e: e - 2), "coverage"),
    "store-shared-past-the-end": (
        "device", lambda: argument("tl.tma_store", 1, shifted_pointer(24576)), "bounds"),
    "store-shared-misaligned": (
        "device", lambda: argument("tl.tma_store", 1, shifted_pointer(-8)), "alignment"),
    "store-by-all-threads": ("device", lambda: unelected, "coverage"),
    "load-slot-past-the-ring": (
        "device", lambda: argument("tl.tma_load", 2, shifted_pointer(2048)), "bounds"),
    "mbarrier-past-the-end": (
        "device", lambda: argument("tirx.ptx_arrive_barrier", 0, shifted_load(2)), "bounds"),
    "descriptor-past-the-ring": (
        "device", lambda: argument("tl.increase_descriptor_offset", 1, lambda e: e + 4096),
        "bounds"),
    "descriptor-into-a-line": (
        "device", lambda: argument("tl.increase_descriptor_offset", 1, lambda e: e + 32), "bounds"),
    "box-of-two-tiles": ("host", lambda: encoding("C_desc", 10, constant(128)), "blocks"),
    "box-of-half-a-tile": ("host", lambda: encoding("C_desc", 10, constant(32)), "coverage"),
    "box-wider-than-its-swizzle": ("host", lambda: encoding("C_desc", 9, constant(128)), "maps"),
    "box-of-257-rows": ("host", lambda: encoding("A_desc", 10, constant(257)), "maps"),
    "stride-of-an-odd-element": ("host", lambda: encoding("A_desc", 8, constant(258)), "maps"),
    "stride-of-a-longer-row": ("host", lambda: encoding("A_desc", 8, constant(272)), "bounds"),
    "extent-of-one-more-row": ("host", lambda: encoding("C_desc", 6, lambda e: e + 1), "bounds"),
}  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_copy_just_outside_is_refuted(gemms, name):
    where, change, broken = OUTSIDE[name]
    key = "tirx.Call"
    report = decide(changed(gemms["sm_90a"], where, key, change()))
    assert report.properties[broken].verdict is Verdict.REFUTED, report
    assert report.properties[broken].counterexamples[0].confirmed
