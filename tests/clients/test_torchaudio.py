"""torchaudio: bars of its mel spectrograms, and how its own masking differs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from gmml_aug import GroupMask, Noise, patch_to_pixel

try:
    transforms: Any = pytest.importorskip("torchaudio.transforms")
except RuntimeError as error:  # one for another CUDA than torch's
    pytest.skip(str(error), allow_module_level=True)

BARS: Any = {(1, "all"): 1, ("all", 1): 1}


def spectrograms(batch: int = 4) -> Tensor:
    """Return log-mels `(B, 1, mel, time)` of tones that glide, in noise, in decibels."""
    torch.manual_seed(0)
    time = torch.arange(255 * 160) / 16000
    tones = torch.sin(2 * torch.pi * (torch.rand(batch, 1, 1) * 2000 + 200 + 400 * time) * time)
    mel = transforms.MelSpectrogram(16000, n_fft=512, hop_length=160, n_mels=64)
    decibels: Tensor = transforms.AmplitudeToDB(top_db=80)(mel(tones + 0.1 * torch.randn_like(tones)))
    return decibels


def test_bars_hide_whole_bands_and_whole_moments() -> None:
    clean = spectrograms()
    assert clean.shape == (4, 1, 64, 256)
    noise = Noise(clean.mean().item(), clean.std().item())
    corrupted, mask = GroupMask(8, 0.5, noise, group_size=BARS)(clean)
    hidden = patch_to_pixel(mask, 8)
    assert mask.shape == (4, 8, 32)
    assert (mask.sum((1, 2)) == 128).all()
    assert mask.all(1).any()  # moments
    assert mask.all(2).any()  # bands
    assert torch.equal(corrupted[~hidden], clean[~hidden])
    assert corrupted[hidden].mean().item() == pytest.approx(noise.mean, abs=0.02 * noise.std)
    assert corrupted[hidden].std().item() == pytest.approx(noise.std, rel=0.02)


@pytest.mark.parametrize("ratio", [0.25, 0.5])
def test_bars_of_single_bins(ratio: float) -> None:
    """Patches of one bin by one frame: bars as thin as torchaudio's thinnest."""
    corrupted, mask = GroupMask(1, ratio, "zeros", group_size={("all", 1): 1})(spectrograms())
    frames = mask.all(1)
    assert (frames.sum(1) == 256 * ratio).all()
    assert torch.equal(frames[:, None].expand_as(mask), mask)
    assert torch.equal(corrupted == 0, mask[:, None])


@pytest.mark.parametrize(("kind", "axis"), [("FrequencyMasking", 2), ("TimeMasking", 3)])
def test_its_own_masks_are_one_bar_of_a_random_width_for_all_of_a_batch(kind: str, axis: int) -> None:
    """The differences that the recipe names."""
    clean, other = spectrograms(), 5 - axis
    torch.manual_seed(0)
    counts = []
    for _ in range(20):
        hidden = getattr(transforms, kind)(40)(clean) != clean
        lines = hidden.all(other)[:, 0]
        assert torch.equal(lines, lines[:1].expand_as(lines))  # the same in every image
        assert torch.equal(hidden, lines[:, None].unsqueeze(other).expand_as(hidden))
        edges = lines[0].int().diff(prepend=torch.zeros(1, dtype=torch.int), append=torch.zeros(1, dtype=torch.int))
        assert (edges == 1).sum() <= 1  # one bar
        counts.append(int(lines[0].sum()))
    assert len(set(counts)) > 5
    assert max(counts) < 40
    apart = getattr(transforms, kind)(40, iid_masks=True)(clean) != clean
    assert not torch.equal(apart, apart[:1].expand_as(apart))
    mine = GroupMask(1, 0.1, "zeros", group_size={("all", 1): 1})(clean).mask
    assert len(mine.flatten(1).unique(dim=0)) == 4


def test_it_comes_after_the_transforms_of_torchaudio() -> None:
    clean = spectrograms()
    torch.manual_seed(0)
    before = transforms.TimeMasking(40, iid_masks=True)(clean, mask_value=clean.min())
    corrupted, mask = GroupMask(8, 0.5, "mean", group_size=BARS)(before)
    hidden = patch_to_pixel(mask, 8)
    assert torch.equal(corrupted[~hidden], before[~hidden])
