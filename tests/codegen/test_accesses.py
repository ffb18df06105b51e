"""Each access to global memory: its width in the machine code, its tensor, and why it is narrow."""

from __future__ import annotations

import pytest

from tileproof.codegen.accesses import accesses
from tileproof.codegen.addresses import Address, addresses
from tileproof.codegen.device import compile_cuda
from tileproof.codegen.sass import global_width, listed, widths

HEAD = 'extern "C" __global__ void f(const float* __restrict__ x, float* __restrict__ y, int P) {'
# One kernel a reason: what stands in its body, the reason of its read of x, sectors of a warp.
BODIES = {
    "wide": ("*(float4*)(y + threadIdx.x * 4) = *(float4*)(x + (threadIdx.x * 4));", "", (16, 16)),
    "neighbours": (
        "y[threadIdx.x] = x[((int)threadIdx.x)];",
        "neighbouring threads take neighbouring 4 bytes",
        (4, 4),
    ),
    "broadcast": ("y[threadIdx.x] = x[7];", "one address for the whole warp", (1, 1)),
    "groups": (
        "y[threadIdx.x] = x[(((int)threadIdx.x) >> 3)];",
        "groups of threads share an address",
        (1, 1),
    ),
    "pitch": (
        "y[threadIdx.x] = x[(((int)threadIdx.x) * P)];",
        "aligned to 4 bytes only, by P, threadIdx.x",
        (32, 4),
    ),
    "one by one": (
        "#pragma unroll 1\n  for (int i = 0; i < 8; ++i) {\n"
        "    float v = x[((((int)threadIdx.x) * 8) + i)];\n    y[i * P] += v;\n  }",
        "loop i takes neighbours one by one",
        (32, 4),
    ),
    "apart": (
        "y[threadIdx.x] = x[(((int)threadIdx.x) * 8)];",
        "threads lie 32 bytes apart, each takes 4",
        (32, 4),
    ),
    "gather": (
        "int held = (int)y[threadIdx.x + 64]; int k[1]; k[0] = held;\n  y[threadIdx.x] = x[k[0]];",
        "the address holds a value of run time, k[0]",
        (0, 0),
    ),
}


def reads(body: str, **options):
    found = accesses(f"{HEAD}\n  {body}\n}}\n", "sm_80", **options)
    return [a for a in found if a.tensor == "x"]


@pytest.mark.parametrize("name", BODIES)
def test_the_reason_of_a_narrow_read(name):
    body, reason, sectors = BODIES[name]
    (read,) = reads(body)
    assert (read.reason, (read.sectors, read.least)) == (reason, sectors)
    assert read.width == (16 if name == "wide" else 4)
    assert read.line == 2 + body[: body.index("x[" if name != "wide" else "(x +")].count("\n")


def test_a_size_that_is_a_multiple_does_not_spoil_alignment():
    body = BODIES["pitch"][0]
    (read,) = reads(body, multiples={"P": 4})
    assert read.reason == "threads lie 65584 bytes apart, each takes 4"


def test_a_load_the_compiler_moved_is_found_by_elimination():
    # All threads read x[0] before the loop, whichever line the compiler gives it.
    body = "for (int i = 0; i < 4; ++i) {\n    float s = x[0];\n    y[i * P] = s * i;\n  }"
    (read,) = reads(body)
    assert (read.tensor, read.line, read.reason) == ("x", 3, "one address for the whole warp")


def test_line_numbers_do_not_change_the_code():
    cuda = f"{HEAD}\n  {BODIES['wide'][0]}\n  {BODIES['one by one'][0]}\n}}\n"
    built = compile_cuda(cuda, "sm_80", contract_fma=True).kernels["f"]["widths"]
    counted: dict[str, int] = {}
    for access in accesses(cuda, "sm_80"):
        name = f"{access.instruction.partition('.')[0]}.{access.width}"
        counted[name] = counted.get(name, 0) + access.count
    assert counted == built


def test_widths_are_read_from_the_disassembly():
    named = {"LDG.E.U8.CONSTANT": 1, "STG.E.U16": 2, "LDG.E": 4, "LDG.E.64": 8, "STG.E.128": 16}
    named |= {"LDGSTS.E.BYPASS.128": 16, "UTMALDG.2D": 0, "ATOMG.E.ADD.64": 8}
    assert {name: global_width(name) for name in named} == named
    assert global_width("LDS.128") is global_width("LDGDEPBAR") is None
    sass = '\t.section\t.text.k,"ax",@progbits\n        /*0010*/     @!P0 LDG.E.128 R4, [R2.64] ;\n'
    names = [name for kernel, name, _ in listed(sass * 2) if kernel == "k"]
    assert widths(names) == {"LDG.16": 2}


def test_an_address_knows_its_side_of_an_assignment_and_its_loops():
    lines = ["  for (int i = 0; i < 4; ++i) {", "    y[i] = (x[(i * 2)] == 3);", "  }"]
    found = addresses(lines, 1, {"x": 4, "y": 2}, {})
    assert found == [
        Address("x", 4, "(i * 2)", False, 2, ("i",)),
        Address("y", 2, "i", True, 2, ("i",)),
    ]
    assert (found[0].step("i"), found[1].step("i")) == (8, 2)
