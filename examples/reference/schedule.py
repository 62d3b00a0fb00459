"""The one schedule: a line up to the peak, then a cosine."""

from __future__ import annotations

import math


def cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * share))


def warmed(step: int, steps: int, warmup: int, peak: float, end: float = 0.0) -> float:
    """Return the learning rate of a step, counted from 0: linear over the warm-up, then a cosine down to ``end``."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return cosine(peak, end, (step - warmup) / (steps - warmup))
