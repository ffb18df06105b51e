"""Many proofs at once, in processes: lowering and solving both hold the interpreter's lock."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

from tileproof.dsl import Specialization, load_library

from . import cache
from .model import KernelReport, Report
from .prove import prove_one

Progress = Callable[[KernelReport, int, int], None]


def prove_many(
    work: Iterable[tuple[Any, str]],
    jobs: int = 1,
    on_progress: Progress | None = None,
    use_cache: bool = True,
) -> Report:
    """Prove (kernel, arch) pairs; the report keeps their order.

    Args:
        work: specializations of the library's ops (others run in this process) with an arch each.
        jobs: worker processes; 1 proves everything here.
        on_progress: called with each finished kernel, how many are finished, and of how many.
    """
    pairs = list(work)
    done: dict[int, KernelReport] = {}

    def finish(index: int, report: KernelReport) -> None:
        done[index] = report
        if on_progress is not None:
            on_progress(report, len(done), len(pairs))

    remote: list[list[int]] = []
    local = list(range(len(pairs)))
    if jobs > 1 and len(pairs) > 1:
        remote = _groups(pairs)
        local = [i for i in local if not any(i in group for group in remote)]
    if remote:
        # TileLang's compiler threads do not survive a fork.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(jobs, len(remote)), mp_context=context) as pool:
            futures = {}
            for group in remote:
                kernel = pairs[group[0]][0]
                archs = [pairs[i][1] for i in group]
                future = pool.submit(_remote, kernel.op.name, _sizes(kernel), archs, use_cache)
                futures[future] = group
            for future in as_completed(futures):
                for index, data in zip(futures[future], future.result(), strict=True):
                    finish(index, KernelReport.from_dict(data))
    for i in local:
        kernel, arch = pairs[i]
        finish(i, prove_one(kernel, arch, use_cache=use_cache))
    return Report([done[i] for i in range(len(pairs))], cache.tools())


def _groups(pairs: list[tuple[Any, str]]) -> list[list[int]]:
    """Indices by kernel: one worker takes all architectures of a kernel, since most share code."""
    groups: dict[str, list[int]] = {}
    for i, (kernel, _) in enumerate(pairs):
        if isinstance(kernel, Specialization) and load_library().get(kernel.op.name) is kernel.op:
            groups.setdefault(kernel.symbol, []).append(i)
    return list(groups.values())


def _sizes(kernel: Specialization) -> dict[str, Any]:
    """What `specialize` needs to make this specialization again in another process."""
    given = {k: v for k, v in kernel.dims.items() if kernel.op.dims[k].derived is None}
    return {**given, **kernel.types, **kernel.params}


def _remote(
    op: str, sizes: dict[str, Any], archs: list[str], use_cache: bool
) -> list[dict[str, Any]]:
    kernel = load_library()[op].specialize(**sizes)
    return [prove_one(kernel, arch, use_cache=use_cache).to_dict() for arch in archs]
