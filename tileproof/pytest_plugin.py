"""pytest plugin: a test asserts a proof.

    def test_scale(tileproof):
        tileproof.prove(scale, args={"D": 4096}, dims={"m": (0, 1 << 20)}, properties=["bounds"])

The fixture takes defaults from ``@pytest.mark.tileproof(arch=…, dims=…, rlimit=…)`` on a test, a
class or a module. Registered as the ``pytest11`` entry point, it costs nothing until it is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pytest


class Prover:
    """The ``tileproof`` fixture."""

    def __init__(self, defaults: Mapping[str, Any]) -> None:
        self._defaults = defaults

    def prove(self, kernel: Any, **options: Any) -> Any:
        """Fail the test unless `kernel` is proved; the report, otherwise.

        Args:
            kernel: what :func:`tileproof.prove` takes.
            options: those of :func:`tileproof.prove`, ``dims`` (name → (lowest, highest)) as a
                short form of that fact, and ``properties``, the names that must be proved; by
                default all that apply to the kernel.
        """
        given = _joined(self._defaults, options)
        properties = given.pop("properties", None)
        return _prove(kernel, properties, **given)


def _joined(defaults: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    given = {**defaults, **options}
    dims = {**defaults.get("dims", {}), **options.get("dims", {})}
    given.pop("dims", None)
    if dims:
        from tileproof.dsl import Facts

        ranges = Facts.from_dict({"dims": dims})
        given["facts"] = Facts.read(given.get("facts")).updated(ranges)
    return given


def _prove(kernel: Any, properties: Sequence[str] | None, **options: Any) -> Any:
    __tracebackhide__ = True
    from tileproof import verify

    report = verify.prove(kernel, **options)
    if properties is not None:
        _only(report, properties)
    if report.exit_code:
        pytest.fail(verify.to_text(report), pytrace=False)
    return report


def _only(report: Any, names: Iterable[str]) -> None:
    """Reduce a report to some properties, each of which must say something of the kernel."""
    from tileproof.verify import Verdict

    for kernel in report.kernels:
        if kernel.error:
            continue
        for name in names:
            if name not in kernel.properties:
                known = ", ".join(kernel.properties)
                raise pytest.UsageError(f"property: got {name!r}, expected one of {known}")
            if kernel.properties[name].verdict is Verdict.NOT_APPLICABLE:
                pytest.fail(f"{kernel.kernel}: {name} does not apply to it", pytrace=False)
        kernel.properties = {n: kernel.properties[n] for n in names}


@pytest.fixture
def tileproof(request: pytest.FixtureRequest) -> Prover:
    """Proves kernels: ``tileproof.prove(kernel, dims=…, properties=…)``."""
    defaults: dict[str, Any] = {}
    for marker in request.node.iter_markers("tileproof"):  # the nearest comes first
        defaults = {**marker.kwargs, **defaults}
    return Prover(defaults)


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker."""
    words = "tileproof(**options): defaults of the tileproof fixture, as tileproof.prove takes them"
    config.addinivalue_line("markers", words)
