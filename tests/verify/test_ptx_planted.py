"""The PTX route against a compiler that errs: PTX of library kernels, changed in one place."""

import re

import pytest

from tileproof import cli
from tileproof.codegen.device import compile_ptx
from tileproof.codegen.lower import lower
from tileproof.dsl import load_library
from tileproof.verify import Verdict
from tileproof.verify.operands import places
from tileproof.verify.ptx import prove, prove_text
from tileproof.verify.ptx.multiply import span

# What a compiler might get wrong → (op, its text, what stands there instead, what then fails).
# The first place that matches is changed.
PLANTED = {
    "an offset": ("mhc/collapse", r"(ld\.global\S+ .*\[%rd\d+)\+8192\]", r"\1+8208]", "bounds"),
    "a place of a vector": (
        "mhc/collapse",
        r"(ld\.global\S+ .*\[%rd\d+)\+8192\]",
        r"\1+8184]",
        "alignment",
    ),
    "a stride": ("mhc/collapse", r"(add\.s64 \s*%rd\d+, %rd\d+), 2048;", r"\1, 2064;", "bounds"),
    "a trip count": ("mhc/collapse", r"(setp\.ne\.s32 .*), 4;", r"\1, 5;", "bounds"),
    "a scale of an index": ("mhc/collapse", r"(shl\.b64 .*), 2;", r"\1, 3;", "bounds"),
    "a guard": ("quant/fp4_dequant", r"setp\.ge\.s32", "setp.gt.s32", "bounds"),
    "a guard that is gone": ("quant/fp4_dequant", r"@%p1 bra\s+\S+;", "", "bounds"),
    "a width": ("quant/fp4_dequant", r"(ld\.global\.nc)\.u8( .*)", r"\1.u16\2", "bounds"),
    "a shared address": ("mhc/head", r"(st\.shared\.f32\s+\[%r\d+)\]", r"\1+4096]", "bounds"),
    "a shared vector": ("mhc/head", r"(ld\.shared\.v4\.f32 .*\[gates)\]", r"\1+8]", "alignment"),
    "a copy's place": (
        "mhc/prenorm_gemm",
        r"(cp\.async\.cg\S+ \[%r\d+)\]",
        r"\1+262144]",
        "bounds",
    ),
    "a copy's source": (
        "mhc/prenorm_gemm",
        r"(cp\.async\.cg\S+ \[%r\d+\], \[%rd\d+)\]",
        r"\1+8]",
        "alignment",
    ),
    "a matrix's stride": (
        "gemm/fp8",
        r"(mov\.u32 \s*%r\d+), 1073741888;",
        r"\1, 1073745920;",  # 4096 units of 16 bytes from eight rows to the next, and not 64
        "bounds",
    ),
    "a matrix's place": (
        "gemm/fp8",
        r"(add\.s32 \s*%r\d+, %r\d+), 2;(\s+mov\.b64 )",
        r"\1, 3072;\2",
        "bounds",
    ),
}
OPS = {op for op, *_ in PLANTED.values()}
SHAPES = {"gemm/fp8": ("tiny", "sm_90a")}


@pytest.fixture(scope="module")
def kernels():
    """Lowered op and its PTX by name."""
    out = {}
    for name in sorted(OPS):
        shape, arch = SHAPES.get(name, ("flash", "sm_80"))
        spec = load_library()[name].shape_set(shape)[0][0]
        kernel = lower(spec, arch)
        fma = spec.op.variant(arch).contract_fma
        out[name] = kernel, compile_ptx(kernel.cuda, arch, contract_fma=fma)
    return out


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_is_found(kernels, name):
    op, old, new, wrong = PLANTED[name]
    kernel, text = kernels[op]
    changed, count = re.subn(old, new, text, count=1)
    assert count == 1
    property = prove_text(kernel, changed, use_cache=False).properties[wrong]
    assert property.verdict is Verdict.REFUTED, property
    assert any(e.confirmed for e in property.counterexamples)


@pytest.mark.parametrize("op", sorted(OPS - {"mhc/prenorm_gemm"}))
def test_the_compilers_own_text_is_proved(kernels, op):
    """prenorm_gemm's is proved with the whole library, in test_ptx.py."""
    assert prove_text(*kernels[op], use_cache=False).verdict is Verdict.PROVED


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("line", "row"), [(16, 32), (16, 128), (32, 32), (64, 128), (128, 256)])
def test_an_operand_spans_what_the_other_route_says_it_covers(line, row, transposed):
    """Chunk by chunk; the two routes share no code."""
    leading, stride = 4096, 1 << 14
    for lines in (8, 16, 64):
        chunks = places(line, leading, stride, transposed, lines, row)
        end = max(chunks) + 16
        assert span(line, leading, stride, transposed, lines, row) == -(-end // line) * line


def test_a_compiler_that_errs_is_an_error_of_the_run(monkeypatch, capsys):
    """The IR is PROVED, the PTX is REFUTED: one sentence says so, and the exit code is 1."""
    op, old, new, _ = PLANTED["an offset"]

    def errs(*args, **more):
        return re.sub(old, new, compile_ptx(*args, **more), count=1)

    monkeypatch.setattr(prove, "compile_ptx", errs)
    words = ["verify", op, "--arch", "sm_80", "--route", "both", "--no-cache", "--jobs", "1"]
    assert cli.app(words, standalone_mode=False) == 1
    text = " ".join(capsys.readouterr().out.split())
    sentence = (
        r"the routes disagree: bounds of mhc_collapse\S* on sm_80 is PROVED in the IR and "
        r"REFUTED in the PTX"
    )
    assert re.search(sentence, text), text
