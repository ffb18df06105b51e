"""Many proofs at once, in processes: lowering and solving both hold the interpreter's lock."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

from tileproof.dsl import Specialization, load_library

from . import cache
from .model import KernelReport, Report
from .prove import in_library, prove_one

Progress = Callable[[KernelReport, int, int], None]


def prove_many(
    work: Iterable[tuple[Any, str]],
    jobs: int = 1,
    on_progress: Progress | None = None,
    use_cache: bool = True,
) -> Report:
    """Prove (kernel, arch) pairs; the report keeps their order.

    Args:
        work: kernels with an arch each; those that are no op of the library run in this process.
        jobs: worker processes; 1 proves everything here.
        on_progress: called with each finished kernel, how many are finished, and of how many.
    """
    pairs = list(work)
    done: dict[int, KernelReport] = {}

    def finish(index: int, report: KernelReport) -> None:
        done[index] = report
        if on_progress is not None:
            on_progress(report, len(done), len(pairs))

    local = list(range(len(pairs)))
    remote = [i for i in local if in_library(pairs[i][0])] if jobs > 1 and len(pairs) > 1 else []
    if remote:
        local = [i for i in local if i not in set(remote)]
        # TileLang's compiler threads do not survive a fork.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(jobs, len(remote)), mp_context=context) as pool:
            futures = {}
            for i in remote:
                kernel, arch = pairs[i]
                future = pool.submit(_remote, kernel.op.name, _sizes(kernel), arch, use_cache)
                futures[future] = i
            for future in as_completed(futures):
                finish(futures[future], KernelReport.from_dict(future.result()))
    for i in local:
        kernel, arch = pairs[i]
        finish(i, prove_one(kernel, arch, use_cache=use_cache))
    return Report([done[i] for i in range(len(pairs))], cache.tools())


def _sizes(kernel: Specialization) -> dict[str, Any]:
    """What `specialize` needs to make this specialization again in another process."""
    given = {k: v for k, v in kernel.dims.items() if kernel.op.dims[k].derived is None}
    return {**given, **kernel.types, **kernel.params}


def _remote(op: str, sizes: dict[str, Any], arch: str, use_cache: bool) -> dict[str, Any]:
    kernel = load_library()[op].specialize(**sizes)
    return prove_one(kernel, arch, use_cache=use_cache).to_dict()
