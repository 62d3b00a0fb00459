"""A few steps of training, by which the tests see that a model learns from what we hide."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def falls(model: nn.Module, loss: Callable[[], Tensor], share: float, lr: float = 2e-3, steps: int = 25) -> None:
    """Assert that the loss falls with one step, and below a share of the first with a few more."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        now = loss()
        now.backward()
        optimizer.step()
        losses.append(now.item())
    assert losses[1] < losses[0]
    assert losses[-1] < share * losses[0]
