"""The rules of the verdict: what is not understood is said, what is refuted replays."""

import json
from dataclasses import replace

import pytest
import tilelang.language as T
from tilelang import tvm

from tileproof.codegen.lower import lower
from tileproof.dsl import ARCHS, ContractError, dim, load_library, registry, static
from tileproof.dsl.spec import In, Op, Out
from tileproof.verify import (
    KernelReport,
    Report,
    Verdict,
    cache,
    domain,
    prove_lowered,
    to_json,
    to_text,
)
from tileproof.verify.mutate import mutants
from tileproof.verify.props import PROPERTIES
from tileproof.verify.prove import launches_of

tirx = tvm.tirx


def lowered_norm(D=96):
    return lower(load_library()["norm/rmsnorm_unweighted"].specialize(D=D), "sm_80")


@pytest.fixture(scope="module")
def norm():
    return lowered_norm()


def prepended(lowered, statement):
    """The kernel with one more statement at the start of its body."""

    def add(f):
        return f.with_body(tirx.SeqStmt([statement, f.body]))

    functions = {g: add(f) for g, f in lowered.device_mod.functions_items()}
    return replace(lowered, device_mod=tvm.IRModule(functions))


def prove(lowered, **facts):
    return prove_lowered(lowered, facts=facts, use_cache=False)


def test_unmodelled_call_makes_every_property_unknown_by_name(norm):
    call = tirx.call_extern("void", "tl::not_in_the_table", tirx.IntImm("int32", 1))
    report = prove(prepended(norm, tirx.Evaluate(call)))
    assert report.unmodelled == ["tl::not_in_the_table"]
    assert {p.verdict for p in report.properties.values()} == {Verdict.UNKNOWN}
    assert all("tl::not_in_the_table" in p.reasons[0] for p in report.properties.values())
    assert "tl::not_in_the_table" in to_text(Report([report]))


def test_unmodelled_statement_is_not_skipped(norm):
    one = tirx.IntImm("bool", 1)
    loop = tirx.While(one, tirx.Evaluate(tirx.IntImm("int32", 0)))
    assert prove(prepended(norm, loop)).unmodelled == ["While"]


def test_unseen_store_is_not_called_missing(norm):
    """What is not modelled may be what writes the output."""
    call = tirx.Evaluate(tirx.call_extern("void", "writes_everything"))
    functions = {g: f.with_body(call) for g, f in norm.device_mod.functions_items()}
    report = prove(replace(norm, device_mod=tvm.IRModule(functions)))
    assert report.properties["coverage"].verdict is Verdict.UNKNOWN


def test_impossible_sizes_prove_nothing():
    M = T.dynamic("M")

    @T.prim_func
    def kernel(y: T.Tensor((M, 128), "float32")):
        with T.Kernel(M, threads=128) as m:
            y[m, T.get_thread_binding()] = 0.0

    lowered = lower(kernel, "sm_80")
    sizes = {"dims": {"M": [1, 3]}}
    assert prove(lowered, **sizes).verdict is Verdict.PROVED
    report = prove(lowered, **sizes, multiples={"M": 4})
    assert report.verdict is Verdict.ERROR
    assert "no size meets the assumptions on dims" in report.error
    # One size exists, but no block runs at it: nothing was checked.
    report = prove(lowered, dims={"M": [0, 0]})
    assert "no access is reached at any size" in report.properties["bounds"].reasons


def test_undeclared_range_is_assumed_and_said():
    M = T.dynamic("M")

    @T.prim_func
    def kernel(y: T.Tensor((M, 128), "float32")):
        with T.Kernel(M, threads=128) as m:
            y[m, T.get_thread_binding()] = 0.0

    report = prove(lower(kernel, "sm_80"))
    assert report.domain == {"M": "0..1048576"}
    assert any("no declared range" in note for note in report.notes)
    assert report.properties["coverage"].verdict is Verdict.NOT_APPLICABLE


def test_unknown_fact_is_refused(norm):
    with pytest.raises(ContractError, match="facts: got unknown keys \\['dim'\\]"):
        prove(norm, dim={"M": [0, 1]})
    with pytest.raises(ContractError, match="size expression"):
        prove(norm, values={"x": ["0", "M**2"]})


def test_weak_pointer_contract_refutes_vectors(monkeypatch):
    """The launcher promises 8 bytes; the kernel loads 16 at once."""

    def factory(T, M, D):
        @T.prim_func
        def kernel(x: T.Tensor((M, D), "float32"), y: T.Tensor((M, D), "float32")):
            with T.Kernel(M, threads=D // 4) as m:
                for v in T.vectorized(4):
                    y[m, T.get_thread_binding() * 4 + v] = x[m, T.get_thread_binding() * 4 + v]

        return kernel

    def verdict(align):
        monkeypatch.setattr(registry, "_OPS", {})
        op = Op(
            f"test/copy{align}",
            args=(replace(In("x", "M D", "f32"), align=align), Out("y", "M D", "f32")),
            dims={"M": dim(0, 1 << 20), "D": static(4, 4096, multiple=4)},
            doc="a copy",
            reference=lambda x: x,
            shapes={"tiny": {"M": 7, "D": 128}},
        )
        op.kernel()(factory)
        return prove(lower(op.specialize(D=128), "sm_80")).properties["alignment"].verdict

    assert verdict(16) is Verdict.PROVED
    assert verdict(8) is Verdict.REFUTED


def test_report_survives_json(norm):
    mutant = next(m for m in mutants(norm) if m.kind == "store+1" and m.site.startswith("y["))
    report = Report([prove(norm), prove(mutant.lowered)], {"z3-solver": "4"})
    again = Report.from_dict(json.loads(to_json(report)))
    assert again == report
    assert again.exit_code == 1 and Report([prove(norm)]).exit_code == 0


def test_text_fits_80_columns(norm):
    reports = [prove(m.lowered) for m in list(mutants(norm))[:12]]
    text = to_text(Report(reports))
    assert "REFUTED" in text
    assert max(map(len, text.splitlines())) <= 80


def test_every_refutation_replays_on_the_ir(norm):
    """Independent of the solver: the machine that executes TIR sees each violation again."""
    replayed = 0
    for mutant in mutants(norm):
        bounds = prove(mutant.lowered).properties["bounds"]
        for example in bounds.counterexamples:
            assumed = domain.build(mutant.lowered.source, mutant.lowered.spec, None)
            (launch, *_), _ = launches_of(mutant.lowered, assumed, {})
            symbols = [*assumed.dims.values(), *launch.facts.symbols.values()]
            values = {**example.sizes}
            for name, index in (("blockIdx", example.block), ("threadIdx", example.thread)):
                values |= {f"{name}.{axis}": v for axis, v in zip("xyz", index, strict=True)}
            loops = {s for a in launch.facts.accesses for s in a.context.loops}
            point = {s: values[s.name] for s in symbols}
            point |= {s: example.loops[s.name] for s in loops if s.name in example.loops}
            touched = launch.replay(point).touched
            assert any(t.offset < 0 or t.offset + t.lanes > t.extent for t in touched)
            replayed += 1
    assert replayed > 5


def test_a_result_is_found_again_only_for_the_same_program(norm, tmp_path, monkeypatch):
    monkeypatch.setenv("TILEPROOF_CACHE", str(tmp_path))
    monkeypatch.setattr(cache, "_EARLIER", cache.Results())
    first = prove_lowered(norm)
    assert not first.reused and prove_lowered(norm).reused
    assert not prove_lowered(norm, facts={"written": {"y": "all"}}).reused
    mutant = next(m for m in mutants(norm) if m.kind == "guard-le")
    assert not prove_lowered(mutant.lowered).reused
    # Architectures with equal code share one proof.
    other = lower(load_library()["norm/rmsnorm_unweighted"].specialize(D=96), "sm_89")
    assert prove_lowered(other).reused and prove_lowered(other).arch == "sm_89"


def test_damaged_cache_entry_is_ignored(norm, tmp_path, monkeypatch):
    monkeypatch.setenv("TILEPROOF_CACHE", str(tmp_path))
    monkeypatch.setattr(cache, "_EARLIER", cache.Results())
    prove_lowered(norm)
    (entry,) = (tmp_path / "proofs").glob("*.json")
    entry.write_text("{")
    monkeypatch.setattr(cache, "_EARLIER", cache.Results())
    report = prove_lowered(norm)
    assert not report.reused and report.verdict is Verdict.PROVED


def test_reports_name_every_property(norm):
    report = prove(norm)
    assert list(report.properties) == [p.name for p in PROPERTIES]
    assert isinstance(report, KernelReport) and report.arch in ARCHS
