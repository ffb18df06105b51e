"""One kernel, several draws of inputs, several schedules: every run is checked, and all runs of one
draw must leave the same bits."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from tileproof.codegen.lower import Lowered, lower
from tileproof.codegen.virtual import VirtualKernel
from tileproof.dsl import ContractError, Facts, Specialization, check
from tileproof.runtime import virtual
from tileproof.runtime.virtual import CompileError, Place, VirtualError, VirtualOptions

from .inputs import Draw, draw
from .model import Finding, KernelReport, Party, Report, schedule_words

LIMIT = 100  # findings kept of one kernel
# What a block and a launch may take before they count as endless.
STEPS = 1 << 28
SECONDS = 120.0


def schedules(seed: int) -> list[VirtualOptions]:
    """The schedules of a run, each with late and with eager asynchronous work."""
    return [
        VirtualOptions(late, seed, checked=True, steps=STEPS, seconds=SECONDS, schedule=schedule)
        for schedule in virtual.SCHEDULES
        for late in (True, False)
    ]


def sanitize(
    kernel: Any,
    *inputs: Any,
    arch: str = "sm_80",
    args: Mapping[str, Any] | None = None,
    facts: Facts | Mapping[str, Any] | None = None,
    seed: int = 0,
    draws: int = 3,
    on_run: Callable[[str], None] | None = None,
) -> Report:
    """Run `kernel` under several schedules and report what it does wrong.

    Args:
        kernel: a specialization of an op, a TileLang prim_func, a ``@tilelang.jit`` function, a
            factory of either (called with `args`), or a :class:`Lowered` kernel.
        inputs: arguments in signature order, outputs included, as CPU tensors and numbers. Without
            any, `draws` sets of arguments are drawn from types, sizes and `facts`.
        facts: what is true of the arguments; see :class:`tileproof.dsl.Facts`.
        seed: of draws and schedules; the same seed repeats everything.
        on_run: called with a few words after every run.

    A kernel that cannot be run is reported as UNKNOWN with the reason. Raises ContractError for
    arguments or facts that do not fit the kernel.
    """
    from tileproof.codegen.target import as_prim_func

    if isinstance(kernel, Lowered):
        lowered = kernel
    else:
        if not isinstance(kernel, Specialization):
            kernel = as_prim_func(kernel, args, arch_name=arch)
        lowered = lower(kernel, arch)
    known = Facts.of(lowered.spec) if lowered.spec is not None else lowered.facts
    facts = known.updated(Facts.read(facts))
    report = KernelReport(
        lowered.name,
        lowered.arch,
        seed,
        cuda=lowered.cuda,
        origin=lowered.origin,
        origins=lowered.origins,
    )
    start = time.perf_counter()
    try:
        built = VirtualKernel(lowered, checked=True)
    except (CompileError, ContractError) as error:
        report.reason = str(error).splitlines()[0]
    else:
        parameters, written = lowered.parameters, built.written()
        names = [p.name for p in parameters]
        for number in range(1 if inputs else draws):
            case = (
                _given(built, inputs, facts)
                if inputs
                else draw(parameters, written, facts, seed, number)
            )
            _schedule(report, built.module, case, names, facts, lambda a: built(*a), on_run)
    report.seconds = time.perf_counter() - start
    return Report([report])


def sanitize_text(
    cuda: str,
    kernel: str,
    arguments: Sequence[Any],
    *,
    grid: Sequence[int],
    block: Sequence[int],
    smem: int = 0,
    cluster: Sequence[int] = (),
    cooperative: bool = False,
    facts: Facts | None = None,
    seed: int = 0,
) -> Report:
    """The same for one kernel of a CUDA text in TileLang's form, launched with these arguments."""
    facts = facts or Facts()
    report = KernelReport(kernel, "", seed, cuda=cuda)
    start = time.perf_counter()
    try:
        module = virtual.VirtualModule(cuda, checked=True)
    except CompileError as error:
        report.reason = str(error).splitlines()[0]
        return Report([report])
    parameters = module.kernels[kernel].parameters
    written = {name for kind, name in parameters if kind.endswith("*") and "const " not in kind}
    case = Draw(0, {}, list(arguments), frozenset(written - set(facts.inout)))
    names = [name for _, name in parameters]

    def launch(guarded: list[Any]) -> None:
        module.launch(kernel, grid, block, smem, guarded, cluster=cluster, cooperative=cooperative)

    _schedule(report, module, case, names, facts, launch, None)
    report.seconds = time.perf_counter() - start
    return Report([report])


def _given(built: VirtualKernel, inputs: Sequence[Any], facts: Facts) -> Draw:
    parameters = built.lowered.parameters
    got, expected = len(inputs), len(parameters)
    check(got == expected, f"{built.lowered.name}: arguments", got=got, expected=expected)
    for parameter, value in zip(parameters, inputs, strict=True):
        if isinstance(value, torch.Tensor):
            where = f"{built.lowered.name}: {parameter.name}"
            device = value.device
            check(device.type == "cpu", where, got=f"a tensor on {device}", expected="cpu")
    outputs = frozenset(built.written() - set(facts.inout))
    return Draw(0, {}, list(inputs), outputs)


def _schedule(
    report: KernelReport,
    module: virtual.VirtualModule,
    case: Draw,
    names: Sequence[str],
    facts: Facts,
    call: Callable[[list[Any]], None],
    on_run: Callable[[str], None] | None,
) -> None:
    """Runs one draw under every schedule."""
    first: tuple[VirtualOptions, dict[str, torch.Tensor]] | None = None
    for options in schedules(report.seed):
        session = virtual.Session(LIMIT)
        try:
            arguments = [
                session.argument(value, initialised=name not in case.outputs)
                if isinstance(value, torch.Tensor)
                else value
                for name, value in zip(names, case.arguments, strict=True)
            ]
            error = _call(call, arguments, session, options)
            found = _findings(report, module, session, case, options)
            if error and not found:
                if "does not model" in error:
                    report.reason = error
                    return
                found.append(_of_launch(report, error, case, options))
            results = {
                name: value.clone()
                for name, value in zip(names, arguments, strict=True)
                if isinstance(value, torch.Tensor) and name in case.outputs | set(facts.inout)
            }
            if not error and not found:
                if first is None:
                    first = options, results
                    found += _unwritten(report, session, case, options, names, arguments, facts)
                elif facts.deterministic:
                    found += _differences(report, case, options, results, *first)
            report.dropped += session.dropped
        finally:
            session.close()
        report.runs += 1
        _add(report, found)
        if on_run is not None:
            on_run(f"{report.kernel} {report.arch}")


def _call(
    call: Callable[[list[Any]], None],
    arguments: list[Any],
    session: virtual.Session,
    options: VirtualOptions,
) -> str:
    """Why the launches did not come to their end, "" if they did. What a kernel did wrong is a
    finding of the session too; what no GPU would launch is not."""
    with virtual.options(**asdict(options)), session.active():
        try:
            call(arguments)
        except VirtualError as error:
            return str(error)
    return ""


def _findings(
    report: KernelReport,
    module: virtual.VirtualModule,
    session: virtual.Session,
    case: Draw,
    options: VirtualOptions,
) -> list[Finding]:
    raw = session.findings()
    sites = [place.site for f in raw for place in (f.at, f.other_at) if place is not None]
    lines = virtual.lines(module.path, sites)
    text = report.cuda.splitlines()

    def party(place: Place, what: str = "") -> Party:
        line = lines.get(place.site)
        words = text[line - 1].strip() if line else ""
        origin = report.origins[line - 1] if line and len(report.origins) == len(text) else None
        return Party(place.block, place.thread, line, words, what, origin or report.origin)

    return [
        Finding(
            f.kind,
            f.kernel,
            f.words,
            party(f.at),
            party(f.other_at, f.other) if f.other_at else None,
            case.dims,
            case.number,
            options.order,
            options.seed,
            options.late,
            f.count,
        )
        for f in raw
    ]


def _differences(
    report: KernelReport,
    case: Draw,
    options: VirtualOptions,
    results: Mapping[str, torch.Tensor],
    reference: VirtualOptions,
    expected: Mapping[str, torch.Tensor],
) -> list[Finding]:
    found = []
    for name, value in results.items():
        # Bits are compared, not numbers: a NaN equals itself.
        got, want = (t.contiguous().view(-1).view(torch.uint8) for t in (value, expected[name]))
        wrong = (got != want).nonzero()
        if not len(wrong):
            continue
        element = int(wrong[0]) // value.element_size()
        index = [int(i) for i in torch.unravel_index(torch.tensor(element), value.shape)]
        pair = [t.reshape(-1)[element].item() for t in (value, expected[name])]
        other = schedule_words(reference.order, reference.seed, reference.late)
        message = (
            f"{len(wrong)} bytes differ between schedules: element {index} is "
            f"{pair[0]!r}, with schedule {other} it is {pair[1]!r}"
        )
        found.append(_of_output("schedule-dependent", name, report, message, case, options))
    return found


def _unwritten(
    report: KernelReport,
    session: virtual.Session,
    case: Draw,
    options: VirtualOptions,
    names: Sequence[str],
    arguments: Sequence[Any],
    facts: Facts,
) -> list[Finding]:
    found = []
    for name, value in zip(names, arguments, strict=True):
        if name not in facts.written or name not in case.outputs or not value.numel():
            continue
        byte = session.unwritten(value)
        if byte is None:
            continue
        element = byte // value.element_size()
        index = [int(i) for i in torch.unravel_index(torch.tensor(element), value.shape)]
        message = f"element {index} of output '{name}' was not written"
        found.append(_of_output("unwritten", name, report, message, case, options))
    return found


def _of_launch(report: KernelReport, message: str, case: Draw, options: VirtualOptions) -> Finding:
    return _of_run("launch", Party(), report, message, case, options)


def _of_output(
    kind: str, name: str, report: KernelReport, message: str, case: Draw, options: VirtualOptions
) -> Finding:
    return _of_run(kind, Party(what=f"output '{name}'"), report, message, case, options)


def _of_run(
    kind: str, at: Party, report: KernelReport, message: str, case: Draw, options: VirtualOptions
) -> Finding:
    how = options.order, options.seed, options.late
    return Finding(kind, report.kernel, message, at, None, case.dims, case.number, *how)


def _add(report: KernelReport, found: Sequence[Finding]) -> None:
    """Findings that are the same defect become one, as first met."""
    known = {f.key: i for i, f in enumerate(report.findings)}
    for finding in found:
        index = known.get(finding.key)
        if index is not None:
            old = report.findings[index]
            report.findings[index] = replace(old, count=old.count + finding.count)
        elif len(report.findings) < LIMIT:
            known[finding.key] = len(report.findings)
            report.findings.append(finding)
        else:
            report.dropped += 1
