"""Functions that the tests run in other processes: kept apart, because every spawned process imports it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from gmml_aug import GroupMask, Masked


class Masks(Dataset[Tensor]):
    """A data set whose every item is a mask drawn in the worker that loads it."""

    def __init__(self, corrupt: GroupMask, use_index: bool = False) -> None:
        self.corrupt, self.use_index = corrupt, use_index

    def __len__(self) -> int:
        return 32

    def __getitem__(self, i: int) -> Tensor:
        masked: Masked = self.corrupt(torch.zeros(1, 16, 16), index=i if self.use_index else None)
        return masked.mask


class Stream(IterableDataset[Tensor]):
    """Samples without an index, as WebDataset gives them."""

    def __init__(self, corrupt: GroupMask) -> None:
        self.corrupt = corrupt

    def __iter__(self) -> Iterator[Tensor]:
        return (self.corrupt(torch.zeros(1, 16, 16)).mask for _ in range(16))


class Collate:
    """The transform where torchvision's CutMix stands: on the batch, in the worker."""

    def __init__(self, corrupt: GroupMask) -> None:
        self.corrupt = corrupt

    def __call__(self, samples: list[Tensor]) -> Tensor:
        masked: Masked = self.corrupt(torch.zeros(len(samples), 1, 16, 16))
        return masked.mask


def draw_in_rank(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    corrupt = GroupMask(1, 0.5, seed=0)
    here = corrupt(torch.zeros(8, 1, 16, 16)).mask
    loader = DataLoader(Masks(corrupt), 8, num_workers=1, multiprocessing_context="spawn")
    by_index = corrupt(torch.zeros(8, 1, 16, 16), index=torch.arange(8)).mask
    torch.save((here, torch.cat(list(loader)), by_index), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()
