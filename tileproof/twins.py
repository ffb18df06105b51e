"""The second judge of mutants: the bits that CUDA texts leave on the virtual GPU.

It shares no code with the prime-field run, draws other sizes and numbers, and sees rounding.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from tileproof.codegen.lower import Lowered, cuda_text
from tileproof.dsl import Facts

# What a block and a launch may take before they count as endless.
_STEPS = 1 << 24
_SECONDS = 30.0
_SEED = 1
_DRAWS = (3, 4)  # the sanitizer has the first few


class Twins:
    """What `lowered` leaves in each of its tensors; run once, as soon as it is asked for."""

    def __init__(self, lowered: Lowered, facts: Facts) -> None:
        self.lowered, self.facts = lowered, facts
        self._left: list[list[torch.Tensor]] | None = None

    def difference(self, other: Lowered) -> str | None:
        """What `other` leaves, or does, that the first program does not; "" if nothing.

        None if one of the two is not compiled or uses something the virtual GPU does not model.
        """
        from tileproof.runtime.virtual import CompileError, VirtualError

        try:
            if self._left is None:
                self._left = self._run(self.lowered)
            text = cuda_text(other.device_mod, other.arch)
            left = self._run(replace(other, written=text))
        except CompileError:
            return None
        except VirtualError as error:
            words = str(error)
            return None if self._left is None or "does not model" in words else words
        names = [p.name for p in self.lowered.parameters if p.shape is not None]
        for expected, got in zip(self._left, left, strict=True):
            for number, (a, b) in enumerate(zip(expected, got, strict=True)):
                if not torch.equal(a, b):
                    return f"{names[number % len(names)]} has other bits"
        return ""

    def _run(self, lowered: Lowered) -> list[list[torch.Tensor]]:
        """The bytes of every tensor after every run: each draw on all schedules, one OS thread, so
        that atomics too come in one order."""
        from tileproof.codegen.virtual import VirtualKernel, written
        from tileproof.runtime import virtual
        from tileproof.sanitizer.inputs import draw

        built = VirtualKernel(lowered, checked=True)
        found = []
        for number in _DRAWS:
            for place, schedule in enumerate(virtual.SCHEDULES):
                # What the original writes is poisoned, whatever the other one does.
                case = draw(
                    lowered.parameters, written(self.lowered), self.facts, _SEED, number
                ).arguments
                with virtual.options(
                    late=place % 2 == 0,
                    seed=_SEED,
                    threads=1,
                    checked=True,
                    steps=_STEPS,
                    seconds=_SECONDS,
                    schedule=schedule,
                ):
                    built(*case)
                found.append([_bytes(value) for value in case if isinstance(value, torch.Tensor)])
        return found


def _bytes(tensor: Any) -> torch.Tensor:
    # A single element may have any stride and is contiguous; a clone has that of its shape.
    return tensor.clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8)
