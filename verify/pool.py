"""Many proofs at once, in processes: lowering and solving both hold the interpreter's lock."""

from __future__ import annotations

import functools
import inspect
import multiprocessing
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tileproof.codegen.target import Target
from tileproof.dsl import Specialization, load_library

from . import cache
from .domain import Given
from .encode import LONG
from .model import KernelReport, Report, Route
from .prove import in_library, prove_one

Progress = Callable[[KernelReport, int, int], None]


@dataclass(frozen=True)
class _Task:
    """Proofs of one kernel that another process can do: an op's name and sizes, or a file's."""

    kernel: Target | tuple[str, dict[str, Any]]
    archs: tuple[str, ...]
    facts: Given
    use_cache: bool
    rlimit: int
    route: Route

    def run(self) -> list[dict[str, Any]]:
        # Architectures with equal code share a proof, even where none is kept.
        kept: cache.Use = self.use_cache or cache.Results(lasting=False)
        reports = []
        for arch in self.archs:
            report = prove_one(
                self._made(arch), arch, self.facts, None, kept, self.rlimit, self.route
            )
            reports.append(report.to_dict())
        return reports

    def _made(self, arch: str) -> Any:
        if isinstance(self.kernel, Target):
            return self.kernel.resolve(arch)
        name, sizes = self.kernel
        return load_library()[name].specialize(**sizes)


def prove_many(
    work: Iterable[tuple[Any, str]],
    jobs: int = 1,
    on_progress: Progress | None = None,
    use_cache: bool = True,
    facts: Given = None,
    rlimit: int = LONG,
    routes: Sequence[Route] = ("ir",),
) -> Report:
    """Prove (kernel, arch) pairs; the report keeps their order.

    A worker that is killed costs the kernel it was killed over, which is reported as an ERROR.

    Args:
        work: ops, a file's kernels (:class:`Target`) or prim_funcs, with an arch each; prim_funcs
            and ops outside the library are proved in this process.
        jobs: worker processes; 1 proves everything here.
        on_progress: called with each finished kernel, how many are finished, and of how many.
        facts: what is promised about sizes and tensors, of every kernel that has them.
        rlimit: Z3's budget for one query, in its own steps.
        routes: what is read, the device IR or the PTX; each pair is proved by every one.
    """
    pairs = [(kernel, arch, route) for kernel, arch in work for route in routes]
    done: dict[int, KernelReport] = {}

    def finish(index: int, report: KernelReport) -> None:
        report.file, report.line = _place(pairs[index][0])
        done[index] = report
        if on_progress is not None:
            on_progress(report, len(done), len(pairs))

    remote: dict[int, Target | tuple[str, dict[str, Any]]] = {}
    for i, (kernel, *_) in enumerate(pairs):
        if isinstance(kernel, Target):
            remote[i] = kernel
        elif in_library(kernel):
            remote[i] = (kernel.op.name, _sizes(kernel))

    def task(group: Sequence[int]) -> _Task:
        archs = tuple(pairs[i][1] for i in group)
        return _Task(remote[group[0]], archs, facts, use_cache, rlimit, pairs[group[0]][2])

    groups = _groups(pairs, remote, jobs)
    if jobs > 1 and len(groups) > 1:
        for i in _remote({group: task(group) for group in groups}, jobs, finish):
            # Nobody knows over which task a worker died: each that is left has a process alone.
            if _remote({(i,): task((i,))}, 1, finish):
                kernel = pairs[i][0]
                name = kernel.text if isinstance(kernel, Target) else kernel.symbol
                text = "its worker process was killed, perhaps for memory; fewer --jobs need less"
                finish(i, KernelReport(name, pairs[i][1], error=text, route=pairs[i][2]))
    for group in groups:
        if not done.keys() >= {*group}:
            for i, report in zip(group, task(group).run(), strict=True):
                finish(i, KernelReport.from_dict(report))
    for i, (kernel, arch, route) in enumerate(pairs):
        if i not in done:
            alone = prove_one(kernel, arch, facts, use_cache=use_cache, rlimit=rlimit, route=route)
            finish(i, alone)
    return Report([done[i] for i in range(len(pairs))], cache.tools())


def _groups(
    pairs: Sequence[tuple[Any, str, Route]], remote: Mapping[int, Any], jobs: int
) -> list[tuple[int, ...]]:
    """What one process does in one go: a kernel on all its architectures, which often have equal
    code, where there are enough kernels to keep every process busy."""
    together: dict[str, list[int]] = {}
    for i, kernel in remote.items():
        together.setdefault(repr((kernel, pairs[i][2])), []).append(i)
    if len(together) < jobs:
        return [(i,) for i in remote]
    return [tuple(group) for group in together.values()]


def _remote(
    tasks: dict[tuple[int, ...], _Task], jobs: int, finish: Callable[[int, KernelReport], None]
) -> list[int]:
    """Run tasks in worker processes; the proofs that a worker's death left undone."""
    undone: list[int] = []
    # TileLang's compiler threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(jobs, len(tasks)), mp_context=context) as pool:
        futures: dict[Future[list[dict[str, Any]]], tuple[int, ...]] = {}
        try:
            for group, task in tasks.items():
                futures[pool.submit(task.run)] = group
        except BrokenProcessPool:
            left = [group for group in tasks if group not in futures.values()]
            undone = [i for group in left for i in group]
        for future in as_completed(futures):
            try:
                reports = future.result()
            except BrokenProcessPool:
                undone += futures[future]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
            else:
                for i, report in zip(futures[future], reports, strict=True):
                    finish(i, KernelReport.from_dict(report))
    return sorted(undone)


def _sizes(kernel: Specialization) -> dict[str, Any]:
    """What `specialize` needs to make this specialization again in another process."""
    given = {k: v for k, v in kernel.dims.items() if kernel.op.dims[k].derived is None}
    return {**given, **kernel.types, **kernel.params}


def _place(kernel: Any) -> tuple[str, int]:
    """File and line of a kernel's definition; the file relative to where we are, if below it."""
    if isinstance(kernel, Target):
        path, line = kernel.file, kernel.line()
    elif isinstance(kernel, Specialization):
        factory = kernel.op.variants[0].factory
        if isinstance(factory, functools.partial):  # of a user's file, see codegen.user
            return _place(factory.args[0])
        path, line = Path(inspect.getfile(factory)), inspect.getsourcelines(factory)[1]
    else:
        return "", 1
    path = path.resolve()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path), line
