"""Models that the tests of Lightning fit, in this process and in ranks: kept apart, because every rank imports it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from gmml_aug import GroupMask, patch_to_pixel

IMAGES = torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Pretrain(lightning.LightningModule):
    """Corrupts what it trains on, once it is on its device, and remembers the masks."""

    def __init__(self, seed: int | None = 0) -> None:
        super().__init__()
        self.corrupt = GroupMask(2, (0.4, 0.7), {"noise": 1, "alien": 1}, seed=seed)
        self.model = nn.Conv2d(3, 3, 3, padding=1)
        self.masks: list[Tensor] = []
        self.validated = 0

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        (images,) = batch
        assert images.device == self.device
        return (*self.corrupt(images), images) if self.trainer.training else batch

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        corrupted, mask, images = batch
        hidden = patch_to_pixel(mask, 2).expand_as(images)
        assert torch.equal(corrupted[~hidden], images[~hidden])
        assert not torch.equal(corrupted, images)
        self.masks.append(mask)
        loss: Tensor = ((self.model(corrupted) - images).abs() * hidden).sum() / hidden.sum()
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        (images,) = batch
        assert (images[0] == IMAGES).flatten(1).all(1).any()
        self.validated += 1

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


def fit(model: Pretrain, folder: Path, steps: int, resume_from: Path | None = None, **more: Any) -> Tensor:
    """Fit for so many steps in all, and return the masks as ``(images, 8, 8)``; leaves ``last.ckpt`` in the folder."""
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=steps,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **more,
    )
    train, validation = DataLoader(TensorDataset(IMAGES), 8), DataLoader(TensorDataset(IMAGES[:2]))
    trainer.fit(model, train, validation, ckpt_path=resume_from)
    trainer.save_checkpoint(folder / "last.ckpt")
    return torch.cat(model.masks)


def fit_in_rank(rank: int, folder: Path, port: int) -> None:
    """Fit in one of two processes, as torchrun starts them: in one go, and resumed half way."""
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "none",
    }
    ddp: dict[str, Any] = {"strategy": "ddp", "devices": 2}
    whole = fit(Pretrain(), folder, 4, **ddp)
    first = fit(Pretrain(), folder, 2, **ddp)
    rest = fit(Pretrain(), folder, 4, folder / "last.ckpt", **ddp)
    torch.save((whole, first, rest), folder / f"{rank}.pt")
