"""The runtime's own errors; each message is one sentence with what came and what was expected.

The runtime may not import `tileproof.dsl`, so it has its own `check`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class BundleError(ValueError):
    """A bundle is damaged, of another version, or lacks what was asked of it."""


class MissingKernel(ValueError):  # noqa: N818 - it is not an error of the caller's
    """No specialization fits the call.

    `op` is the op's name; `sizes` are the static dims and params that would have to be built, as
    far as the call shows them, and `types` the element type of each type variable.
    """

    def __init__(
        self, words: str, op: str, sizes: Mapping[str, Any], types: Mapping[str, str]
    ) -> None:
        super().__init__(words)
        self.op, self.sizes, self.types = op, dict(sizes), dict(types)


def check(
    condition: bool, what: str, *, got: Any, expected: Any, error: type = BundleError
) -> None:
    """Raise `error` as ``"<what>: got <got>, expected <expected>"`` unless `condition`."""
    if not condition:
        raise error(f"{what}: got {got}, expected {expected}")
