"""Specializations × architectures → a bundle, on all cores, doing again only what changed."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tileproof.dsl import ContractError, Specialization, arch, check, get, load_library
from tileproof.runtime.cache import atomic_write, cache_dir

from . import elements, host, ircache
from .bundle import Unit, arch_order, write_bundle
from .device import assemble, cache_entry, compile_cuda, compile_ptx, disassemble
from .host import PlannedLaunch, plan
from .resources import Resources, gate
from .toolchain import ToolchainError, Toolkit, versions


@dataclass(frozen=True)
class Event:
    """Progress: unit `done` of `total` took `seconds`; `cached` if nothing had to run."""

    symbol: str
    arch: str
    done: int
    total: int
    cached: bool
    seconds: float


def build(
    specs: Iterable[Specialization],
    archs: Sequence[str],
    out: str | Path,
    *,
    jobs: int | None = None,
    toolkit: Toolkit = "pip",
    ptx: bool = False,
    proofs: Mapping[tuple[str, str], Mapping[str, Any]] | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> Path:
    """Compile every specialization for every architecture into the bundle `out`.

    What compiled before is taken from the cache; `out` appears whole or not at all.

    Args:
        specs: of any ops; duplicates are built once.
        archs: e.g. ``["sm_80", "sm_90a"]``.
        out: the bundle's folder; a bundle that is there is replaced.
        jobs: worker processes, one per core by default. With 1 everything runs in this process.
        toolkit: ``"system"`` uses the nvcc on PATH instead of the one from PyPI.
        ptx: add the PTX of sm_80 and sm_89, from which a driver makes code for devices that are
            newer than all of `archs`.
        proofs: verdicts to record, plain data by ``(symbol, arch)``.
        on_event: called after every unit, from worker threads.

    Raises ToolchainError for a missing or failing tool, ContractError for a kernel that breaks a
    resource limit and for proofs of other kernels than those built.
    """
    unique = {spec.symbol: spec for spec in specs}
    check(bool(unique), "kernels to build", got="none", expected="at least one")
    check(bool(archs), "architectures", got="none", expected="at least one")
    targets = sorted({arch(name).name for name in archs}, key=arch_order)
    portable = [target for target in targets if not target.endswith("a")] if ptx else []
    expected = "sm_80 or sm_89 too: PTX of the others runs on no other device"
    check(bool(portable) or not ptx, "PTX of", got=", ".join(targets), expected=expected)
    versions(toolkit)
    # One architecture after another and one dialect after the other: compilers keep their headers.
    work = [(spec, target) for target in targets for spec in unique.values()]
    work.sort(key=lambda u: (arch_order(u[1]), u[0].op.variant(u[1]).contract_fma))
    known = proofs or {}
    others = [" on ".join(key) for key in known if key not in {(s.symbol, t) for s, t in work}]
    check(not others, "proofs", got=", ".join(others), expected="those of kernels to build")
    counter = _Counter(len(work), on_event)

    units: dict[int, Unit] = {}
    left = []
    for i, (spec, target) in enumerate(work):
        if _is_cached(spec, target, toolkit):
            start = time.monotonic()
            units[i] = compile_unit(spec, target, toolkit)
            counter.report(spec, target, start, cached=True)
        else:
            left.append(i)

    def compile_here(i: int) -> None:
        start = time.monotonic()
        units[i] = compile_unit(*work[i], toolkit)
        counter.report(*work[i], start, cached=False)

    workers = min(jobs or os.cpu_count() or 1, len(left))
    remote = [i for i in left if ircache.in_library(work[i][0])] if workers > 1 else []
    if remote:
        with ThreadPoolExecutor(workers) as pool:
            _Workers(pool, workers, toolkit).fill_cache([work[i] for i in remote], counter)
            _disassemble([work[i] for i in remote], toolkit, pool)
    for i in left:
        if i in remote:
            units[i] = compile_unit(*work[i], toolkit)
        else:
            compile_here(i)
    finished = [
        replace(
            unit,
            ptx=_ptx(unit, toolkit) if unit.arch in portable else None,
            proofs=known.get((unit.spec.symbol, unit.arch)),
        )
        for unit in units.values()
    ]
    return write_bundle(finished, Path(out), versions(toolkit))


def _ptx(unit: Unit, toolkit: Toolkit) -> str:
    contract = unit.spec.op.variant(unit.arch).contract_fma
    return compile_ptx(unit.cuda, unit.arch, contract_fma=contract, toolkit=toolkit)


class _Counter:
    """Numbers events across threads."""

    def __init__(self, total: int, on_event: Callable[[Event], None] | None) -> None:
        self.total, self.done, self.on_event = total, 0, on_event
        self.lock = threading.Lock()

    def report(self, spec: Specialization, target: str, start: float, *, cached: bool) -> None:
        """A unit that was begun at `start`, by time.monotonic, is done."""
        seconds = time.monotonic() - start
        with self.lock:
            self.done += 1
            if self.on_event is not None:
                self.on_event(Event(spec.symbol, target, self.done, self.total, cached, seconds))


def compile_unit(spec: Specialization, target: str, toolkit: Toolkit = "pip") -> Unit:
    """Lower, compile and gate one specialization for one architecture, through the caches."""
    lowered = _lowered(spec, target)
    cuda = lowered["cuda"]
    launches = tuple(PlannedLaunch.from_json(data) for data in lowered["launches"])
    variant = spec.op.variant(target)
    code = compile_cuda(cuda, target, contract_fma=variant.contract_fma, toolkit=toolkit)
    resources = []
    for launch in launches:
        facts = code.kernels[launch.kernel]
        used = Resources(
            kernel=launch.kernel, dynamic_smem=launch.smem, threads=launch.threads, **facts
        )
        resources.append(used)
    # The first launch of a matrix op is the one that multiplies.
    first = next(launch for launch in launches if not launch.optional)
    for launch, used in zip(launches, resources, strict=True):
        matrix = variant.matrix and launch is first
        gate(used, arch(target), op=spec.symbol, matrix=matrix)
    return Unit(spec, target, launches, cuda, code.cubin, tuple(resources))


def _lowered(spec: Specialization, target: str) -> dict[str, Any]:
    """CUDA text and launches, from the cache where the kernel's sources are known completely."""
    path = _plan_path(spec, target)
    if path is not None and path.exists():
        return dict(json.loads(path.read_text()))
    result = ircache.lowered(spec, target)
    cuda, launches = result.cuda, plan(result)
    if (checks := elements.kernel(spec)) is not None:
        cuda, launches = cuda + checks[0], (checks[1], *launches)
    data = {"cuda": cuda, "launches": [launch.to_json() for launch in launches]}
    if path is not None:
        atomic_write(path, json.dumps(data))
    return data


def _is_cached(spec: Specialization, target: str, toolkit: Toolkit) -> bool:
    path = _plan_path(spec, target)
    return path is not None and path.exists() and _entry(spec, target, toolkit).exists()


def _entry(spec: Specialization, target: str, toolkit: Toolkit) -> Path:
    cuda, contract = _lowered(spec, target)["cuda"], spec.op.variant(target).contract_fma
    return cache_entry(cuda, target, contract_fma=contract, toolkit=toolkit)


def _disassemble(
    work: Sequence[tuple[Specialization, str]], toolkit: Toolkit, pool: ThreadPoolExecutor
) -> None:
    """What workers leave to do: count instructions, one call for an architecture."""
    entries: dict[str, list[Path]] = {}
    for spec, target in work:
        entry = _entry(spec, target, toolkit)
        if not entry.exists():
            entries.setdefault(target, []).append(entry)
    for done in [pool.submit(disassemble, found, a, toolkit) for a, found in entries.items()]:
        done.result()


def _plan_path(spec: Specialization, target: str) -> Path | None:
    """Where the CUDA text and launches are kept, readable without TileLang; None for a user's op,
    whose imports we cannot know."""
    if not ircache.in_library(spec):
        return None
    digest = hashlib.sha256(ircache.key(spec, target).encode())
    digest.update(Path(host.__file__).read_bytes())
    digest.update(Path(elements.__file__).read_bytes())
    name = digest.hexdigest()
    return cache_dir("lowered", name[:2]) / f"{name}.json"


class _Workers:
    """Processes that fill the caches; importing TileLang takes them two seconds each.

    They are started as commands, not by multiprocessing, which would run the caller's main module
    again, and speak lines of JSON.
    """

    def __init__(self, pool: ThreadPoolExecutor, count: int, toolkit: Toolkit) -> None:
        self.pool, self.count, self.toolkit = pool, count, toolkit
        self.failed = threading.Event()

    def fill_cache(self, work: Sequence[tuple[Specialization, str]], counter: _Counter) -> None:
        queue = iter(work)
        lock = threading.Lock()

        def serve() -> None:
            code = "import sys, json; sys.path[:] = json.loads(sys.argv[1]); "
            code += "from tileproof.codegen.build import _serve; _serve()"
            command = [sys.executable, "-c", code, json.dumps(sys.path)]
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            assert process.stdin is not None and process.stdout is not None
            try:
                while not self.failed.is_set():
                    with lock:
                        job = next(queue, None)
                    if job is None:
                        break
                    start, (spec, target) = time.monotonic(), job
                    sizes = {**spec.types, **spec.params}
                    sizes |= {k: v for k, v in spec.dims.items() if not spec.op.dims[k].derived}
                    message = {"op": spec.op.name, "sizes": sizes, "arch": target}
                    process.stdin.write(json.dumps(message | {"toolkit": self.toolkit}) + "\n")
                    process.stdin.flush()
                    _raise_reply(process.stdout.readline(), f"{spec.symbol} on {target}")
                    counter.report(spec, target, start, cached=False)
            except BaseException:
                self.failed.set()
                raise
            finally:
                process.stdin.close()
                process.wait()

        for future in [self.pool.submit(serve) for _ in range(self.count)]:
            future.result()


def _raise_reply(line: str, where: str) -> None:
    """Raise here what a worker raised there."""
    if not line:
        raise ToolchainError(f"{where}: the build worker died")
    error = json.loads(line)["error"]
    if error is not None:
        kind = ContractError if error["contract"] else ToolchainError
        raise kind(error["words"])


def _serve() -> None:
    """A worker: one job per line of stdin, one answer per line of stdout, until stdin closes."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a compiler prints shall not mix with the answers
    for line in sys.stdin:
        job = json.loads(line)
        error = None
        try:
            spec, target = get(job["op"]).specialize(**job["sizes"]), job["arch"]
            cuda, contract = _lowered(spec, target)["cuda"], spec.op.variant(target).contract_fma
            assemble(cuda, target, contract_fma=contract, toolkit=job["toolkit"])
        except Exception as raised:
            words = str(raised) or type(raised).__name__
            error = {"contract": isinstance(raised, ContractError), "words": words}
        answers.write(json.dumps({"error": error}) + "\n")
        answers.flush()


def specs_for_model(
    config: Mapping[str, Any], act: str | None = None, ops: Collection[str] = ()
) -> list[Specialization]:
    """What a Hugging Face DeepSeek-V4 config (as a dict) needs of `ops`, by default of all.

    `act` is the activation type, ``"bf16"`` or ``"f32"``; None is the config's own dtype, bf16 if
    it names none. Raises ContractError for a dtype no kernel takes, and for a config
    without a size that an op needs.
    """
    if act is None:
        name = config.get("dtype") or config.get("torch_dtype") or "bfloat16"
        check(name in _ACT, "dtype of the model", got=name, expected=f"one of {', '.join(_ACT)}")
        act = _ACT[name]
    wanted = [op for name, op in load_library().items() if not ops or name in ops]
    return [spec for op in wanted for spec in op.for_model(config, act)]


_ACT = {"bfloat16": "bf16", "float32": "f32"}

# What the ops ask of a configuration, for the two released models (spec §2).
_COMMON = {
    "vocab_size": 129280,
    "num_nextn_predict_layers": 1,
    "head_dim": 512,
    "index_n_heads": 64,
    "o_lora_rank": 1024,
    "qk_rope_head_dim": 64,
    "index_head_dim": 128,
    "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 128},
    "hc_mult": 4,
    "hc_sinkhorn_iters": 20,
    "hc_eps": 1e-6,
    "rms_norm_eps": 1e-6,
    "num_experts_per_tok": 6,
}
MODELS: Mapping[str, Mapping[str, Any]] = {
    "flash": {
        **_COMMON,
        "hidden_size": 4096,
        "num_attention_heads": 64,
        "q_lora_rank": 1024,
        "o_groups": 8,
        "n_routed_experts": 256,
        "moe_intermediate_size": 2048,
        "index_topk": 512,
        "routed_scaling_factor": 1.5,
    },
    "pro": {
        **_COMMON,
        "hidden_size": 7168,
        "num_attention_heads": 128,
        "q_lora_rank": 1536,
        "o_groups": 16,
        "n_routed_experts": 384,
        "moe_intermediate_size": 3072,
        "index_topk": 1024,
        "routed_scaling_factor": 2.5,
    },
}


def default_specs(models: Sequence[str] = ("flash", "pro")) -> list[Specialization]:
    """The whole library at the sizes of V4-Flash and V4-Pro, with bf16 activations."""
    unknown = sorted(set(models) - set(MODELS))
    check(not unknown, "model", got=unknown, expected=f"among {sorted(MODELS)}")
    specs = [s for model in models for s in specs_for_model(MODELS[model], "bf16")]
    return list({spec.symbol: spec for spec in specs}.values())
