"""Every op of the library is proved for 0 to 1,048,576 tokens on every architecture."""

import pytest

from tileproof.dsl import ALL, load_library
from tileproof.verify import Verdict, prove, prove_many

# What they make says where rows of the whole batch lie.
OF_THE_BATCH = ("moe/permute", "moe/source", "moe/mega")


def specialization(op):
    """One cheap size set, without padding, of each op."""
    return op.shape_set("flash")[0][0]


@pytest.mark.parametrize("name", load_library())
def test_proved_at_one_architecture(name):
    op = load_library()[name]
    (report,) = prove(specialization(op), "sm_90a", use_cache=False).kernels
    verdicts = {n: p.verdict for n, p in report.properties.items()}
    assert report.unmodelled == []
    assert verdicts["bounds"] is verdicts["overflow"] is verdicts["blocks"] is Verdict.PROVED
    assert verdicts["determinism"] is Verdict.PROVED
    # what is changed in part is covered by nobody
    complete = any(a.role == "out" for a in op.args)
    assert verdicts["coverage"] is (Verdict.PROVED if complete else Verdict.NOT_APPLICABLE)
    assert set(verdicts.values()) <= {Verdict.PROVED, Verdict.NOT_APPLICABLE}
    batch = [letter for letter, d in op.dims.items() if d.batch]
    assert batch or name in OF_THE_BATCH
    for letter in batch:
        d = op.dims[letter]
        assert d.hi >= 1 << 18 and report.domain[letter] == f"{d.lo}..{d.hi}, batch"


def test_every_architecture_in_two_processes():
    op = load_library()["norm/rmsnorm"]
    finished = []
    work = [(specialization(op), arch) for arch in ALL]
    work += [(specialization(load_library()["mhc/collapse"]), "sm_80")]
    report = prove_many(
        work, jobs=2, use_cache=False, on_progress=lambda k, done, of: finished.append((done, of))
    )
    assert [k.arch for k in report.kernels] == [*ALL, "sm_80"]
    assert report.exit_code == 0
    assert finished == [(i + 1, 6) for i in range(6)]
    # Equal code was proved once, though no earlier result was to be used.
    hashes = [k.ir_hash for k in report.kernels]
    first = {h: hashes.index(h) for h in hashes}
    assert [k.reused for k in report.kernels] == [first[h] != i for i, h in enumerate(hashes)]
    assert len(first) == 2
