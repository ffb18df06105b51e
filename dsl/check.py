"""One way to refuse a bad argument: a sentence with what came and what was expected."""

from __future__ import annotations

from typing import Any


class ContractError(ValueError):
    """An argument breaks the declared contract of an op."""


def check(condition: bool, what: str, *, got: Any, expected: Any) -> None:
    """Raise :class:`ContractError` as ``"<what>: got <got>, expected <expected>"``."""
    if not condition:
        raise ContractError(f"{what}: got {got}, expected {expected}")
