"""The second route: PTX of hand-written CUDA, just inside and just outside every rule."""

from dataclasses import replace

import pytest

from tests.verify.ptx_cuda import HEAD, compiled, run
from tileproof.codegen.device import compile_ptx
from tileproof.codegen.lower import lower
from tileproof.dsl import load_library
from tileproof.verify import KernelReport, Report, Verdict, prove, prove_many
from tileproof.verify.model import PropertyReport
from tileproof.verify.ptx import bits, prove_ptx, walk

# Name → (body inside, body outside, property that fails, and where: M, block, thread).
# `m` is the row of a warp, `t` the thread, `lane` its place in the warp.
ROW = "if (m < M) "
BODIES = {
    "guard": (f"{ROW} y[m * 128 + lane] = 0;", "if (m <= M) y[m * 128 + lane] = 0;", "bounds"),
    "vector": (
        f"{ROW} ((float4*)(y + m * 128LL))[lane] = ((const float4*)(x + m * 128LL))[lane];",
        f"{ROW} *(float4*)(y + m * 128LL + lane * 4 - (lane == 31)) = make_float4(0, 0, 0, 0);",
        "alignment",
    ),
    "last vector": (
        f"{ROW} *(float2*)(y + m * 128LL + 126) = make_float2(0, 0);",
        f"{ROW} *(float2*)(y + m * 128LL + 128) = make_float2(0, 0);",
        "bounds",
    ),
    "wrap": (
        f"{ROW} y[(long long)(m * 128) + lane] = 0;",
        f"{ROW} y[(int)((unsigned)m * 8192u) / 64 + lane] = 0;",
        "bounds",
    ),
    "loop by data": (
        "for (long long i = t + block * 512LL; i < M * 128LL && i < block * 512LL + 512; i += 128)"
        " y[i] = 0;",
        "for (long long i = t + block * 512LL; i <= M * 128LL && i < block * 512LL + 512; i += 128)"
        " y[i] = 0;",
        "bounds",
    ),
    "loop over rows": (
        '_Pragma("unroll 1") for (int r = block; r < M; r += 8) y[r * 128 + t] = 0;',
        '_Pragma("unroll 1") for (int r = block; r < M; r += 8) y[(r + 1) * 128 + t] = 0;',
        "bounds",
    ),
    "index": (
        f"{ROW} {{ int i = index[m]; if (i >= 0) y[i * 128 + lane] = 0; }}",
        f"{ROW} {{ int i = index[m]; y[i * 128 + lane] = 0; }}",
        "bounds",
    ),
    "shared": (
        "tile[t] = t; __syncthreads(); if (m < M) y[m * 128 + lane] = tile[127 - t];",
        "tile[t + 1] = t; __syncthreads(); if (m < M) y[m * 128 + lane] = tile[127 - t];",
        "bounds",
    ),
    "swizzle": (
        "((float4*)tile)[((t & 3) ^ (t >> 2 & 3)) + (t & 28)] = make_float4(t, 0, 0, 0);",
        "((float4*)tile)[((t & 3) ^ (t >> 2 & 7)) + (t & 28)] = make_float4(t, 0, 0, 0);",
        "bounds",
    ),
    "selected": (
        f"{ROW} {{ const float* p = t & 1 ? x : y; y[m * 128 + lane] = p[m * 128 + lane + 1]; }}",
        f"{ROW} {{ const float* p = t & 1 ? x : y; y[m * 128 + lane] = p[m * 128 + lane + 97]; }}",
        "bounds",
    ),
    "atomic": (
        f"{ROW} atomicAdd(y + m * 128 + lane, 1.0f);",
        f"{ROW} atomicAdd(y + m * 128 - lane, 1.0f);",
        "bounds",
    ),
}


@pytest.fixture(scope="module")
def module():
    """Every body as an entry of one PTX module."""
    return compiled(
        {
            f"{name.replace(' ', '_')}_{side}": body
            for name, bodies in BODIES.items()
            for side, body in zip(("inside", "outside"), bodies[:2], strict=True)
        }
    )


@pytest.mark.parametrize("name", BODIES)
def test_ladder(module, name):
    entry, wrong = name.replace(" ", "_"), BODIES[name][2]
    inside = run(module, f"{entry}_inside")
    assert {p.verdict for p in inside.properties.values()} == {Verdict.PROVED}, inside
    assert all(p.obligations for p in inside.properties.values())
    outside = run(module, f"{entry}_outside")
    assert outside.properties[wrong].verdict is Verdict.REFUTED, outside
    assert outside.properties[wrong].counterexamples[0].confirmed


def test_counterexample_names_the_smallest_launch(module):
    (example,) = run(module, "guard_outside").properties["bounds"].counterexamples
    assert example.sizes == {"M": 1} and example.block == (0, 0, 0)
    assert example.message == "writes 4 bytes of y at byte 512 of 512"
    assert "st.global" in example.site


def test_what_is_not_modelled_is_named():
    wait = 'asm volatile("tcgen05.wait::ld.sync.aligned;");'
    text = HEAD + f"KERNEL(k) {{ NAMES {wait} y[0] = tile[0]; }}"
    ptx = compile_ptx(text, "sm_100a", contract_fma=True)
    report = run(ptx, "k")
    assert report.unmodelled == ["tcgen05.wait::ld.sync (1 times)"]
    # y[0] exists wherever a block runs, so the accesses themselves are proved.
    assert {p.verdict for p in report.properties.values()} == {Verdict.UNKNOWN}


CHANGES = {
    "rows too far": ("(int64_t)4096", "(int64_t)4104"),
    "a vector one element further": ("(int64_t)8)))", "(int64_t)8) + 1))"),
}


def test_changed_cuda_of_a_library_kernel_is_refuted():
    spec = load_library()["mhc/collapse"].specialize(N=4, D=4096)
    kernel = lower(spec, "sm_80")
    assert prove_ptx(kernel, use_cache=False).verdict is Verdict.PROVED
    for name, (old, new) in CHANGES.items():
        assert old in kernel.cuda
        changed = replace(kernel, written=kernel.cuda.replace(old, new))
        assert prove_ptx(changed, use_cache=False).verdict is Verdict.REFUTED, name


# After two minutes it is UNKNOWN by name: its loops within loops take more than a million steps.
LONG = {"moe/mega"}
# Stores into other blocks' shared memory are UNKNOWN by name.
CLUSTERS = {"attention/paged_cluster"}


@pytest.mark.parametrize("name", sorted({*load_library()} - LONG - CLUSTERS))
def test_library_is_proved(name):
    spec = load_library()[name].shape_set("flash")[0][0]
    (report,) = prove(spec, "sm_90a", route="ptx").kernels
    assert report.unmodelled == []
    for p in report.properties.values():
        assert p.verdict is Verdict.PROVED and p.proved == p.obligations > 0, report


def test_a_verdict_does_not_depend_on_what_was_proved_before():
    """The same kernels in two orders: the same verdicts after the same number of solver steps."""
    kernels = {}
    for name in ("quant/fp4_cast", "mhc/head", "quant/fp4_simulate"):
        kernels[name] = lower(load_library()[name].shape_set("flash")[0][0], "sm_90a")
    seen = [
        {name: _answers(prove_ptx(kernels[name], use_cache=False)) for name in order}
        for order in (sorted(kernels), sorted(kernels, reverse=True))
    ]
    assert seen[0] == seen[1]
    assert all(steps > 0 for kernel in seen[0].values() for _, steps, *_ in kernel[:1])


def _answers(report):
    return [
        (p.verdict, p.rlimit, p.obligations, p.proved, p.reasons)
        for _, p in sorted(report.properties.items(), reverse=True)
    ]


def test_both_routes_in_one_report():
    work = [(load_library()["mhc/collapse"].shape_set("flash")[0][0], "sm_80")]
    report = prove_many(work, routes=("ir", "ptx"))
    assert [k.route for k in report.kernels] == ["ir", "ptx"]
    assert report.exit_code == 0 and report.disagreements == []


def forged(ir, ptx):
    kernels = [
        KernelReport("k", "sm_80", properties={"bounds": PropertyReport(v)}, route=route)
        for route, v in (("ir", ir), ("ptx", ptx))
    ]
    return Report(kernels)


def test_disagreement_is_an_error():
    for pair in ((Verdict.PROVED, Verdict.REFUTED), (Verdict.REFUTED, Verdict.PROVED)):
        report = forged(*pair)
        assert report.exit_code == 1
        (sentence,) = report.disagreements
        words = f"bounds of k on sm_80 is {pair[0].value} in the IR and {pair[1].value} in the PTX"
        assert words in sentence
    weaker = forged(Verdict.PROVED, Verdict.UNKNOWN)
    assert weaker.exit_code == 0 and weaker.disagreements == []
    assert forged(Verdict.UNKNOWN, Verdict.UNKNOWN).exit_code == 2


def test_terms_agree_with_arithmetic():
    """Simplification against Python integers: every operation at random words."""
    import random

    random.seed(7)
    x, y = (bits.var(f"test {n}", 32) for n in "xy")
    p = bits.less(x, y)
    three = bits.const(3, 32)
    cases = [
        (bits.add(bits.scale(x, 12), y, -5), lambda a, b: 12 * a - 5 * b),
        (bits.and_(bits.add(bits.scale(x, 64), y), bits.const(63, 32)), lambda a, b: b & 63),
        (bits.shr(bits.and_(x, bits.const(0xFF0, 32)), 4, False), lambda a, b: a >> 4 & 255),
        (bits.shr(x, 3, True), lambda a, b: bits.signed(a, 32) >> 3),
        (
            bits.or_(bits.shl(x, 8), bits.and_(y, bits.const(255, 32))),
            lambda a, b: a << 8 | b & 255,
        ),
        (bits.xor(x, y), lambda a, b: a ^ b),
        (bits.trunc(bits.mul(bits.extend(x, 64, True), bits.extend(y, 64, True)), 32), int.__mul__),
        (bits.ite(p, x, y), lambda a, b: min(bits.signed(a, 32), bits.signed(b, 32))),
        (bits.divide("udiv", x, three), lambda a, b: a // 3),
        (bits.divide("srem", x, three), lambda a, b: _remainder(bits.signed(a, 32), 3)),
    ]
    words = [0, 1, 2**31 - 1, 2**31, 2**32 - 1, *(random.getrandbits(32) for _ in range(40))]
    for term, expected in cases:
        for a in words:
            b = random.choice(words)
            got = walk.substitute(term, {x: bits.const(a, 32), y: bits.const(b, 32)})
            assert bits.number(got) == bits.signed(expected(a, b), 32), (term, a, b)


def _remainder(a, b):
    return a - b * (abs(a) // b * (1 if a >= 0 else -1))
