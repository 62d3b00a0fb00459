"""Streams of samples that have no index: WebDataset, and an IterableDataset of one's own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from gmml_aug import GroupMask

from ..processes import Stream

Loaders = Callable[..., Any]  # a GroupMask and the DataLoader's options -> an iterable of batches of masks

pytestmark = [
    pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this platform cannot fork"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create", "ignore:unclosed file:ResourceWarning"),
]


def shards_in(folder: Path) -> Any:
    """Write eight shards of four images, and return a WebDataset of them that any rank may read."""
    wds = pytest.importorskip("webdataset")
    for shard in range(8):
        with wds.TarWriter(str(folder / f"{shard}.tar")) as tar:
            for i in range(4):
                number = 4 * shard + i
                tar.write({"__key__": f"{number:06}", "image.pth": torch.zeros(3, 16, 16), "label.cls": number})
    data = wds.WebDataset(f"{folder}/{{0..7}}.tar", shardshuffle=False, nodesplitter=wds.split_by_node)
    return data.decode().to_tuple("image.pth", "label.cls")


@pytest.fixture(params=["webdataset", "iterable"])
def loaders(request: pytest.FixtureRequest, tmp_path: Path) -> Loaders:
    data = shards_in(tmp_path) if request.param == "webdataset" else None

    def load(corrupt: GroupMask, **more: Any) -> Any:
        more = {"batch_size": 4, "num_workers": 2, "multiprocessing_context": "fork", **more}
        if data is None:
            return DataLoader(Stream(corrupt), **more)
        loader = pytest.importorskip("webdataset").WebLoader(data.map_tuple(corrupt), **more)
        return loader.map(lambda batch: batch[0].mask)

    return load


def drawn(loader: Any) -> Tensor:
    return torch.cat(list(loader))


def different(masks: Tensor) -> int:
    return len({tuple(mask.flatten().tolist()) for mask in masks})


@pytest.mark.parametrize("seed", [None, 0])
@pytest.mark.parametrize("workers", [2, 4])
def test_workers_do_not_repeat_each_other(loaders: Loaders, seed: int | None, workers: int) -> None:
    torch.manual_seed(0)
    corrupt = GroupMask(1, 0.5, seed=seed)
    masks = drawn(loaders(corrupt, num_workers=workers))
    assert len(masks) >= 32
    here = corrupt.sample((8, 3, 16, 16)).mask
    assert different(torch.cat([masks, here])) == len(masks) + 8
    if seed is not None:
        assert torch.equal(drawn(loaders(GroupMask(1, 0.5, seed=seed), num_workers=workers)), masks)


def test_ranks_of_a_launcher_do_not_repeat_each_other(loaders: Loaders, monkeypatch: pytest.MonkeyPatch) -> None:
    corrupt = GroupMask(1, 0.5, seed=0)
    masks = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        masks.append(drawn(loaders(corrupt)))
    assert different(torch.cat(masks)) == sum(map(len, masks)) >= 32


def draw_in_rank(rank: int, folder: Path, loaders: Loaders) -> None:
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    torch.save(drawn(loaders(GroupMask(1, 0.5, seed=0))), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_ranks_of_a_process_group_do_not_repeat_each_other(
    loaders: Loaders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    torch.multiprocessing.start_processes(  # type: ignore[attr-defined, no-untyped-call]
        draw_in_rank, (tmp_path, loaders), nprocs=2, daemon=False, start_method="fork"
    )
    masks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert different(torch.cat(masks)) == sum(map(len, masks)) >= 32


def test_persistent_workers_go_on_in_the_next_epoch(loaders: Loaders) -> None:
    loader = loaders(GroupMask(1, 0.5, seed=0), persistent_workers=True)
    epochs = [drawn(loader) for _ in range(3)]
    assert different(torch.cat(epochs)) == sum(map(len, epochs)) >= 96


def test_new_workers_begin_again(loaders: Loaders) -> None:
    """The known limit, which persistent workers are the way around."""
    loader = loaders(GroupMask(1, 0.5, seed=0))
    assert torch.equal(drawn(loader), drawn(loader))


def test_in_batches_with_donors_from_the_batch(tmp_path: Path) -> None:
    wds = pytest.importorskip("webdataset")
    data = shards_in(tmp_path).batched(4).map_tuple(GroupMask(4, 0.5, "alien", seed=0))
    loader = wds.WebLoader(data, batch_size=None, num_workers=2, multiprocessing_context="fork")
    batches = list(loader)
    assert len(batches) == 8
    for (images, mask), labels in batches:
        assert images.shape == (4, 3, 16, 16)
        assert mask.flatten(1).sum(1).tolist() == [8] * 4
        assert len(labels) == 4


class Crops(IterableDataset[Tensor]):
    """Images of its own, corrupted after the loader: one process counts, whatever the workers do."""

    def __iter__(self) -> Any:
        return iter(torch.zeros(8, 3, 16, 16))


def test_on_the_batch_after_the_loader_epochs_differ_and_a_restored_run_goes_on() -> None:
    def epoch(corrupt: GroupMask) -> Tensor:
        return torch.cat([corrupt(images).mask for images in DataLoader(Crops(), 4, num_workers=2)])

    corrupt, restored = GroupMask(1, 0.5, seed=0), GroupMask(1, 0.5, seed=0)
    masks = [epoch(corrupt)]
    restored.load_state_dict(corrupt.state_dict())
    masks.append(epoch(corrupt))
    assert different(torch.cat(masks)) == 32
    assert torch.equal(epoch(restored), masks[1])
