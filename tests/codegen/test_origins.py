"""Which line of a program a line of its CUDA text comes from."""

from __future__ import annotations

import pytest

from tileproof.codegen.origins import Origin, split

from ..runtime.virtual.catalogue import FOLDER, PROGRAMS

KERNEL = Origin("/k.py", 1)
MARKED = """#include <x>
extern "C" __global__ void k() {
#line 1 "/k.py"
  int a;
#line 3 "/k.py"
  #pragma unroll
  for (;;) {
#line 4 "/k.py"
    float b;
      float c;
    made_up();
    if (x) {
#line 5 "/k.py"
      d();
    } else {
      made_up();
    }
  }
  made_up();
#line 8 "/k.py"
  float2 __1;
  __1.x = f();
  y = __1;
  made_up();
#line 9 "/a \\"b\\".py"
  e();
}
"""


def test_a_line_belongs_to_the_innermost_mark_around_it():
    text, origins = split(MARKED, KERNEL)
    assert "#line" not in text and len(text.splitlines()) == len(origins)
    lines = {
        words.strip(): str(origin).removeprefix("/k.py:")
        for words, origin in zip(text.splitlines(), origins, strict=True)
        if not words.strip().startswith("made_up")
    }
    assert lines["#include <x>"] == "None" and lines["int a;"] == "1"
    assert lines["#pragma unroll"] == lines["for (;;) {"] == "3"
    assert lines["float b;"] == lines["float c;"] == "4"
    assert lines["if (x) {"] == "3" and lines["d();"] == "5"
    # A statement goes on while its temporaries are used.
    assert lines["float2 __1;"] == lines["__1.x = f();"] == lines["y = __1;"] == "8"
    assert lines["e();"] == '/a "b".py:9'
    made_up = [o for words, o in zip(text.splitlines(), origins, strict=True) if "made" in words]
    # Behind a marked statement in a loop; in a branch nobody marked; behind the loop; at the end.
    assert [origin.line for origin in made_up] == [3, 3, 1, 1]


def test_a_program_that_keeps_no_track_has_no_origins():
    assert set(split(MARKED.replace("#line", "//"), None)[1]) == {None}


@pytest.mark.parametrize("name", ["histogram", "softmax"])
def test_the_text_is_the_one_without_marks(name):
    program = PROGRAMS[name]
    lowered = program.lowered("sm_80")
    statements = (FOLDER / lowered.origin.file.rpartition("/")[2]).read_text().splitlines()
    assert f"def {lowered.name}(" in statements[lowered.origin.line - 1]
    text = lowered.cuda.splitlines()
    for words, statement in {
        "histogram": [("AtomicAdd((&(counts", "T.atomic_add(counts[i]"), ("] = 0;", "T.clear(")],
        "softmax": [("expf(", "T.exp("), ("*(float2*)(y + ", "y[row, d] = ")],
    }[name]:
        line = next(i for i, found in enumerate(text) if words in found)
        assert statement in statements[lowered.origins[line].line - 1], words
