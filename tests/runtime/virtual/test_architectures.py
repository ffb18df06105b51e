"""A text of an architecture may only use what that architecture has, and nvcc agrees."""

import re
import subprocess
from pathlib import Path

import pytest

from tileproof.codegen.device import flags
from tileproof.codegen.toolchain import cuda_includes, cuda_tool
from tileproof.dsl import ALL
from tileproof.runtime import virtual
from tileproof.runtime.virtual import compile as build_module

from .architectures import CALLS, NOWHERE, source
from .support import kernel
from .test_vocabulary import declared


def errors(arch: str | None) -> dict[int, str]:
    """What the virtual GPU's compiler says of the calls it refuses, by number."""
    include = Path(virtual.__file__).parent / "include"
    shared = f"thread_local unsigned char s[{1 << 17}];\n"
    text = '#include "vgpu/kernel_main.h"\n' + shared + source([*range(len(CALLS))])
    command = [build_module.compiler()[0], *build_module._FLAGS, *build_module._arch_flags(arch)]
    command += ["-fsyntax-only", "-fmax-errors=0", f"-I{include}", "-x", "c++", "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    found: dict[int, str] = {}
    call = None
    for line in done.stderr.splitlines():
        if match := re.match(r"calls:(\d+):", line):
            call = int(match[1]) - 1  # has the error, or requires what has it, named before it
        if match := re.search(r"error: (.*)", line):
            assert call is not None, f"in the headers themselves: {line}"
            found.setdefault(call, match[1])
    assert bool(found) == bool(done.returncode), done.stderr
    return found


@pytest.mark.parametrize("arch", ALL)
def test_what_an_architecture_lacks_is_refused_by_name(arch):
    refused = errors(arch)
    lacks = {i for i, call in enumerate(CALLS) if call.on(arch) != "x"}
    assert {CALLS[i].text for i in refused} == {CALLS[i].text for i in lacks}
    for i, words in refused.items():
        assert f"{arch} lacks" in words, words
        names = re.findall(r"\w+", CALLS[i].text.replace("bar[0].", ""))
        assert any(len(name) > 3 and name in words for name in names), (words, CALLS[i].text)


def test_a_text_of_no_architecture_may_use_all():
    assert errors(None) == {}


@pytest.mark.parametrize("arch", ALL)
def test_nvcc_takes_what_the_virtual_gpu_takes(arch, tmp_path):
    """And ptxas. That it refuses the rest was seen once for each call; it costs a run per kind."""
    (tmp_path / "k.cu").write_text(source([i for i, c in enumerate(CALLS) if c.on(arch) != "-"]))
    options = [f for f in flags(arch, contract_fma=False) if f != "-O3"]
    command = [cuda_tool("nvcc", "pip"), "-cubin", "-w", "-Xptxas=-O0", *options]
    command += [*(f"-I{path}" for path in cuda_includes()), "k.cu"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_is_modelled_nowhere_does_not_exist():
    assert declared(sorted(NOWHERE)) == set()


@pytest.mark.parametrize("arch", ["sm_80", "sm_100a"])
def test_a_build_says_where_and_what(arch):
    text = kernel("float* y", "y[0] = 1;\n  tl::warpgroup_arrive();").replace(
        "intrin.h>", "intrin.h>\n#include <tl_templates/cuda/instruction/wgmma.h>"
    )
    line = text[: text.index("tl::warpgroup_arrive")].count("\n") + 1
    with pytest.raises(virtual.CompileError) as caught:
        virtual.VirtualModule(text, arch=arch)
    first = str(caught.value).splitlines()[0]
    assert f".cu:{line}:" in first
    words = f"{arch} lacks it, it exists on sm_90a only"
    assert re.search(rf"warpgroup_arrive\(\).? is unavailable: {words}", first), first
    virtual.VirtualModule(text, arch="sm_90a")


def test_an_architecture_is_part_of_the_key_and_well_formed():
    text = kernel("float* y", "y[0] = 2;")
    paths = {virtual.build(text, ["k"], checked=False, arch=a) for a in (None, "sm_80", "sm_90a")}
    assert len(paths) == 3
    with pytest.raises(ValueError, match="architecture: got 'hopper', expected one like 'sm_80'"):
        virtual.build(text, ["k"], checked=False, arch="hopper")
