"""From a kernel to a report: lower, extract facts, run every property, decide.

Rules of the verdict. A property is PROVED when each of its obligations is, nothing in the kernel
is unmodelled, the preconditions can be met at all, and (for all but overflow itself) no machine
integer wraps. N/A means that the kernel has nothing the property speaks about.
"""

from __future__ import annotations

import itertools
import textwrap
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tileproof.codegen import ircache
from tileproof.codegen.lower import Lowered, lower
from tileproof.codegen.target import as_prim_func
from tileproof.dsl import ALL, ContractError, Facts, Specialization, load_library

from . import cache, cluster, domain, terms
from .arena import shared_sizes
from .device import DeviceWalker
from .domain import Domain, Given
from .encode import LONG, Engine
from .facts import Facts as KernelFacts
from .field import compare_values
from .host import HostWalker, launch_checks
from .intrinsics import UnmodelledError
from .model import KernelReport, PropertyReport, Report, Route, Verdict, worst
from .props import PROPERTIES, Launch, Property, asserts, limits
from .ptx import prove_ptx
from .replay import Machine
from .returns import structured
from .terms import le
from .tma import Map, read

_MOST_REASONS = 5
_LONGEST_ERROR = 300
_DOUBTS = {
    "overflow": "integers may wrap: see overflow",
    "barriers": "threads may not meet at the same barrier: see barriers",
    "blocks": "blocks may meet in memory: see blocks",
    "races": "threads may race: see races",
    "async": "copies may be late: see async",
}


def prove(
    kernel: Any,
    arch: str | Sequence[str] | None = None,
    *,
    args: Mapping[str, Any] | None = None,
    facts: Given = None,
    pass_configs: Mapping[str, Any] | None = None,
    rlimit: int = LONG,
    use_cache: bool = True,
    route: Route = "ir",
) -> Report:
    """Prove a kernel for every size of its domain, on one or several architectures.

    Args:
        kernel: a :class:`Specialization` of an op, a TileLang prim_func, a ``@tilelang.jit``
            function, or a factory of either.
        arch: an architecture or several; by default every one the kernel is for.
        args: arguments of a jit function or factory, by name.
        facts: what is promised about sizes and tensors, :class:`tileproof.dsl.Facts` or its JSON
            form; these come on top of what an op declares and ``dsl.assume`` notes.
        pass_configs: TileLang compile options of a prim_func.
        rlimit: Z3's budget for one query, in its own steps, so that a verdict repeats anywhere.
        use_cache: whether earlier results may be returned and this one kept.
        route: what is read, TileLang's device IR or the PTX nvcc makes of it; or ``"values"``, for
            the IR to be executed beside the source.
    """
    archs = [arch] if isinstance(arch, str) else list(arch or _archs(kernel))
    reports = []
    for a in archs:
        traced = kernel
        if not isinstance(kernel, Specialization):
            traced = as_prim_func(kernel, args, arch_name=a)
        reports.append(prove_one(traced, a, facts, pass_configs, use_cache, rlimit, route))
    return Report(reports, cache.tools())


def _archs(kernel: Any) -> list[str]:
    if isinstance(kernel, Specialization):
        return sorted({a for v in kernel.op.variants for a in v.archs}, key=ALL.index)
    return list(ALL)


def prove_one(
    kernel: Any,
    arch: str,
    facts: Given = None,
    pass_configs: Mapping[str, Any] | None = None,
    use_cache: cache.Use = True,
    rlimit: int = LONG,
    route: Route = "ir",
) -> KernelReport:
    """One kernel (a specialization or a prim_func) on one architecture, by one route."""
    start = time.perf_counter()
    key = None
    usual = not facts and not pass_configs and rlimit == LONG
    kept = cache.results(use_cache)
    if kept and usual and in_library(kernel):
        key = cache.source_key(kernel, arch, route)
        if (known := kept.read(key)) is not None:
            known.reused, known.lower_seconds = True, 0.0
            known.seconds = round(time.perf_counter() - start, 3)
            return known
    try:
        if pass_configs:
            lowered = lower(kernel, arch, pass_configs=pass_configs, keep_stages=True)
        else:
            lowered = ircache.lowered(kernel, arch)
    except ContractError:  # no kernel, or no architecture: the caller's mistake
        raise
    except Exception as error:  # TileLang's passes raise anything
        return KernelReport(_name(kernel), arch, error=not_lowered(error), route=route)
    lower_seconds = time.perf_counter() - start
    if route == "ir":
        report = prove_lowered(lowered, facts=facts, use_cache=use_cache, rlimit=rlimit)
    elif route == "ptx":
        report = prove_ptx(lowered, facts=facts, use_cache=use_cache)
    else:
        report = compare_values(lowered, facts=facts, use_cache=use_cache)
    report.lower_seconds = round(lower_seconds, 3)
    if kept and key is not None:
        kept.write(key, report)
    return report


def not_lowered(error: Exception) -> str:
    """What a pass of TileLang raised, whose text runs over many lines, in one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # An excerpt of the source may follow.
    said = list(itertools.takewhile(lambda line: not line.startswith("-->"), lines))
    last = textwrap.shorten(said[-1] if said else type(error).__name__, _LONGEST_ERROR)
    return f"TileLang does not lower it: {last}"


def in_library(kernel: Any) -> bool:
    """Whether another process can make this kernel again from its op's name and sizes."""
    return isinstance(kernel, Specialization) and load_library().get(kernel.op.name) is kernel.op


def _name(kernel: Any) -> str:
    if isinstance(kernel, Specialization):
        return kernel.symbol
    return str(kernel.attrs["global_symbol"])


def prove_lowered(
    lowered: Lowered, *, facts: Given = None, use_cache: cache.Use = True, rlimit: int = LONG
) -> KernelReport:
    """Prove what `lowered` holds, as it stands; see :func:`prove`."""
    start = time.perf_counter()
    try:
        known = lowered.facts.updated(Facts.read(facts))
        return _prove_lowered(lowered, known, cache.results(use_cache), start, rlimit)
    finally:
        terms.forget()


def first_complaint(
    lowered: Lowered, facts: Given, ignored: Collection[str] = ()
) -> tuple[str, str] | None:
    """The first property, with a reason, that is refuted or an alarm and not among `ignored`.

    What comes after it is not decided. None if there is no such property.
    """
    try:
        known = lowered.facts.updated(Facts.read(facts))
        assumed = domain.build(lowered.source, lowered.spec, known)
        launches, unmodelled = launches_of(lowered, assumed, shared_sizes(lowered.stages))
        if contradiction := _contradiction(launches, assumed):
            return "error", contradiction
        for name, p in _decided(launches, unmodelled, _vacuity(launches)[0]):
            if p.verdict in (Verdict.REFUTED, Verdict.ALARM) and name not in ignored:
                return name, next(iter(p.reasons), "")
        return None
    finally:
        terms.forget()


def _prove_lowered(
    lowered: Lowered, facts: Facts, kept: cache.Results | None, start: float, rlimit: int
) -> KernelReport:
    assumed = domain.build(lowered.source, lowered.spec, facts)
    ir_hash = cache.ir_hash(lowered)
    sizes = shared_sizes(lowered.stages)
    key = cache.key(ir_hash, assumed, sizes, rlimit, limits.decisive(lowered))
    if kept and (known := kept.read(key)) is not None:
        known.kernel, known.arch, known.reused = lowered.name, lowered.arch, True
        known.seconds = round(time.perf_counter() - start, 3)
        return known
    launches, unmodelled = launches_of(lowered, assumed, sizes, rlimit)
    if contradiction := _contradiction(launches, assumed):
        return KernelReport(lowered.name, lowered.arch, ir_hash, error=contradiction)
    vacuous, notes = _vacuity(launches)
    waiting = [a for launch in launches for a in launch.assumptions]
    notes += [*limits.warnings(launches), *(f"it is assumed that {a}" for a in waiting)]
    properties = dict(_decided(launches, unmodelled, vacuous))
    notes += [remark for launch in launches for remark in launch.remarks]
    report = KernelReport(
        kernel=lowered.name,
        arch=lowered.arch,
        ir_hash=ir_hash,
        properties=properties,
        domain=assumed.describe(),
        assumptions=[*assumed.assumptions(), *waiting],
        notes=[*assumed.notes, *notes],
        unmodelled=unmodelled,
        seconds=round(time.perf_counter() - start, 3),
    )
    if kept:
        kept.write(key, report)
    return report


def launches_of(
    lowered: Lowered, assumed: Domain, sizes: Mapping[str, int], rlimit: int = LONG
) -> tuple[list[Launch], list[str]]:
    """The launches of one call, and the names of everything that could not be modelled."""
    hosts = [f for _, f in lowered.host_mod.functions_items()]
    host = HostWalker(KernelFacts("host"), assumed).run(hosts[0])
    unmodelled = list(assumed.unmodelled)
    functions = {g.name_hint: f for g, f in lowered.device_mod.functions_items()}
    layouts = {
        str(b.name): (list(b.shape), list(b.strides)) for b in lowered.source.buffer_map.values()
    }
    # A tensor that the kernel reshapes is called by the reshaped one's name in host code.
    named = {str(b.data.name): str(b.name) for b in lowered.source.buffer_map.values()}
    parts = []
    writers: dict[str, int] = {}
    try:
        calls = lowered.launches
        sizes_of = {launch: cluster.extents(launch) for launch in calls}
    except (ContractError, UnmodelledError) as error:  # conditional launches
        calls = ()
        unmodelled.append(f"host: {error}")
    for launch in calls:
        function = structured(functions[launch.kernel])
        extents = launch_checks(launch, host, assumed)
        # Device parameters are reordered; the host's call says which tensor each one is.
        names = {
            p: named.get(a.name, a.name)
            for p, a in zip(function.params, launch.args, strict=True)
            if a.is_tensor
        }
        encoded = {
            p: a.tensor_map
            for p, a in zip(function.params, launch.args, strict=True)
            if a.tensor_map is not None
        }
        maps: dict[Any, Map] = {}
        for p, tensor_map in encoded.items():
            try:
                maps[p] = read(tensor_map, assumed)
            except UnmodelledError as missing:
                unmodelled.append(f"host: {missing}")
        walker = DeviceWalker(
            KernelFacts(launch.kernel),
            assumed.dims,
            assumed.tensors,
            names,
            extents,
            sizes,
            maps,
            sizes_of[launch],
        )
        facts = walker.run(function)
        unmodelled += facts.unmodelled
        engine = Engine(facts, assumed, rlimit)
        asserts.settle(facts, engine)
        machine = Machine(function, layouts, names, sizes, encoded)
        tensor_maps = {str(p.name): m for p, m in maps.items()}
        resources = limits.of(launch, lowered, assumed)
        parts.append((launch, facts, extents, machine, engine, resources, tensor_maps))
        for tensor in {a.buffer.tensor for a in facts.accesses if a.mode == "write"}:
            writers[tensor] = writers.get(tensor, 0) + 1
    unmodelled += host.unmodelled
    promised = {t.name for t in assumed.tensors.values() if t.written is not None}
    launches = []
    for i, (launch, facts, extents, machine, engine, resources, tensor_maps) in enumerate(parts):
        own = {a.buffer.tensor for a in facts.accesses if a.mode == "write"}
        never = {t for t in promised if t not in writers} if i == 0 else set()
        launches.append(
            Launch(
                facts=facts,
                domain=assumed,
                engine=engine,
                machine=machine,
                extents=extents,
                host=host if i == 0 else None,
                complete=not unmodelled,
                outputs=frozenset((own & promised) | never),
                shared=frozenset(t for t in own if writers[t] > 1),
                resources=resources,
                maps=tensor_maps,
                clusters=sizes_of[launch],
                cooperative=launch.cooperative,
            )
        )
    return launches, list(dict.fromkeys(unmodelled))


def _contradiction(launches: list[Launch], assumed: Domain) -> str:
    """Why no argument at all meets the contracts, "" if some may: then anything could be proved."""
    if not launches:
        return ""
    engine = launches[0].engine
    dims = list(assumed.dims.values())
    if not engine.satisfiable():
        return "the contracts contradict each other: no size meets the assumptions on dims"
    for tensor in assumed.tensors.values():
        if tensor.values is not None and tensor.values.none is None:
            some = le(tensor.values.lo, tensor.values.hi)
            if engine.on_sizes(some, dims).proved:
                name = tensor.name
                return f"the contracts contradict each other: no value meets that of {name}"
    return ""


def _vacuity(launches: list[Launch]) -> tuple[str, list[str]]:
    """Why a proof would be empty ("" if it is not), and remarks on accesses never reached."""
    if not launches:
        return "no launch was seen", []
    accesses = [(launch, a) for launch in launches for a in launch.facts.accesses]
    dead = [a for launch, a in accesses if not launch.engine.possible(a.context)]
    if accesses and len(dead) == len(accesses):
        return "no access is reached at any size", []
    notes = [f"never reached in this domain: {a.site}" for a in dead[:_MOST_REASONS]]
    return "", notes


def _decided(
    launches: list[Launch], unmodelled: list[str], vacuous: str
) -> Iterator[tuple[str, PropertyReport]]:
    """Every property in its turn; one that a later one throws doubt on comes again."""
    earlier: dict[str, PropertyReport] = {}
    for p in PROPERTIES:
        earlier[p.name] = _decide(p, launches, unmodelled, vacuous, earlier)
        yield p.name, earlier[p.name]
    barriers = earlier["barriers"]
    if barriers.verdict is Verdict.PROVED and any(launch.facts.common for launch in launches):
        # Threads that race may not read the same, and then not come to the same barrier.
        doubts = [_DOUBTS[n] for n in ("races", "async") if _is_open(earlier[n])]
        if doubts:
            yield "barriers", replace(barriers, verdict=Verdict.UNKNOWN, reasons=doubts)


def _is_open(report: PropertyReport) -> bool:
    return report.proved < report.obligations


def _decide(
    p: Property,
    launches: list[Launch],
    unmodelled: list[str],
    vacuous: str,
    earlier: Mapping[str, PropertyReport],
) -> PropertyReport:
    start = time.perf_counter()
    spent = sum(launch.engine.spent for launch in launches)
    goals = [g for launch in launches for g in p.goals(launch)]
    failed = [g for g in goals if g.verdict is not Verdict.PROVED]
    verdict = worst(g.verdict for g in goals) if goals else Verdict.NOT_APPLICABLE
    reasons = list(dict.fromkeys(g.reason for g in failed))
    if verdict is Verdict.ALARM and unmodelled:
        # What was passed over may be just what rules an unconfirmed counterexample out.
        verdict = Verdict.UNKNOWN
        reasons += [f"not modelled: {name}" for name in unmodelled]
    elif verdict in (Verdict.PROVED, Verdict.NOT_APPLICABLE):
        doubts = [f"not modelled: {name}" for name in unmodelled]
        if vacuous:
            doubts.append(vacuous)
        for name, doubt in _DOUBTS.items():
            relied = earlier.get(name) if name in p.relies_on else None
            if relied is not None and _is_open(relied):
                doubts.append(doubt)
        if doubts:
            verdict = Verdict.UNKNOWN
            reasons += doubts
    return PropertyReport(
        verdict=verdict,
        obligations=len(goals),
        proved=len(goals) - len(failed),
        seconds=round(time.perf_counter() - start, 3),
        rlimit=sum(launch.engine.spent for launch in launches) - spent,
        reasons=reasons[:_MOST_REASONS],
        counterexamples=[g.example for g in failed if g.example is not None][:_MOST_REASONS],
    )
