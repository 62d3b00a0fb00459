"""GroupMask in a LightningModule: after the copy to the device, and through a checkpoint."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("lightning")

from . import fits

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on workers, loggers and checkpoints


def different(masks: Tensor) -> int:
    return len({tuple(mask.flatten().tolist()) for mask in masks})


def test_a_resumed_fit_goes_on_with_the_masks_of_one_that_did_not_stop(tmp_path: Path) -> None:
    """Four steps are an epoch: the second fit resumes in the middle of one, and passes into another."""
    whole = fits.fit(fits.Pretrain(), tmp_path, 6)
    first = fits.fit(fits.Pretrain(), tmp_path, 2)
    resumed = fits.Pretrain()
    rest = fits.fit(resumed, tmp_path, 6, tmp_path / "last.ckpt")
    assert torch.equal(torch.cat([first, rest]), whole)
    assert different(whole) == len(whole) == 48
    assert resumed.corrupt.counter == 48


def test_validation_is_neither_corrupted_nor_counted(tmp_path: Path) -> None:
    model = fits.Pretrain()
    masks = fits.fit(model, tmp_path, 4)
    assert model.validated == 4  # two images before the first step, and after the epoch
    assert model.corrupt.counter == len(masks) == 32


def test_ranks_differ_and_each_goes_on_with_its_own_masks(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(fits.fit_in_rank, (tmp_path, port), nprocs=2)  # type: ignore[attr-defined, no-untyped-call]
    masks = []
    for rank in range(2):
        whole, first, rest = torch.load(tmp_path / f"{rank}.pt")
        assert torch.equal(torch.cat([first, rest]), whole)
        masks.append(whole)
    assert different(torch.cat(masks)) == sum(map(len, masks)) == 64
