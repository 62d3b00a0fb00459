"""Other libraries that draw masks or hide parts of images, called as their documentation shows.

Each function takes what fixes the work (a batch size or images) and returns what is timed. Where a peer works image by
image, so does the loop here; where it has a batched way, that is used. About half of each image is asked for.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

GRID, PATCH = 14, 16
_JEPA_BATCH = 64
HIDDEN = 98  # half of the 196 patches


def lightly_blocks(batch: int, device: str) -> Callable[[], Tensor]:
    """Block masks of lightly: BEiT's and DINOv2's way, a Python loop for each image."""
    from lightly.models.utils import random_block_mask

    # Drawn on the CPU, whatever the device: it reads each block's overlap back, for which a GPU would wait every time.
    return lambda: random_block_mask(
        size=(batch, GRID, GRID), batch_mask_ratio=1.0, min_image_mask_ratio=0.5, max_image_mask_ratio=0.5
    ).to(device)


def lightly_tokens(batch: int, device: str) -> Callable[[], Tensor]:
    """Masks of single patches of lightly, which gives them as indices: MAE's way, batched."""
    from lightly.models.utils import random_token_mask

    def draw() -> Tensor:
        _, hidden = random_token_mask((batch, GRID * GRID), mask_ratio=0.5, mask_class_token=True, device=device)
        mask = torch.zeros(batch, GRID * GRID, dtype=torch.bool, device=device).scatter_(1, hidden, True)
        return mask.view(batch, GRID, GRID)

    return draw


def lightly_grid(batch: int) -> Tensor:
    """Masks of lightly of squares on a regular grid, Pixio's: of 2 x 2 patches, as 14 is no multiple of the usual 4."""
    from lightly.models.utils import random_grid_token_mask

    return _from_indices(random_grid_token_mask((batch, GRID * GRID + 1), mask_ratio=0.5, grid_size=2)[1] - 1)


def lightly_inverse(batch: int) -> Tensor:
    """Inverse blocks of lightly, which CAPI introduced: one block stays visible."""
    from lightly.models.utils import random_inverse_block_mask

    return _from_indices(random_inverse_block_mask((batch, GRID * GRID + 1), mask_ratio=0.5)[1] - 1)


def dinov3_masks(checkout: str | None, batch: int) -> Tensor:
    """Masks of DINOv3's MaskingGenerator, a call for each image; it fills up with single patches."""
    module = _load(checkout, "--dinov3", "github.com/facebookresearch/dinov3", "dinov3/data/masking.py")
    generator = module.MaskingGenerator((GRID, GRID), max_num_patches=0.5 * GRID * GRID)
    return torch.stack([torch.from_numpy(generator(HIDDEN)) for _ in range(batch)])


def beit_masks(checkout: str | None, batch: int) -> Tensor:
    """Masks of BEiT's MaskingGenerator with the arguments of its training, but for half of the patches."""
    import numpy as np

    module = _load(checkout, "--unilm", "github.com/microsoft/unilm", "beit/masking_generator.py")
    if not hasattr(np, "int"):  # which NumPy dropped in 1.24
        vars(module)["np"] = SimpleNamespace(**vars(np), int=int)
    generator = module.MaskingGenerator((GRID, GRID), HIDDEN, min_num_patches=16)
    return torch.stack([torch.from_numpy(generator() != 0) for _ in range(batch)])


def mmpretrain_beit(checkout: str | None, batch: int) -> Tensor:
    """Masks of MMPretrain's BEiTMaskGenerator, with the arguments of its own BEiT, but for half of the patches."""
    generator = _mmpretrain(checkout).BEiTMaskGenerator(GRID, HIDDEN, min_num_patches=16)
    return torch.stack([torch.from_numpy(generator.transform({})["mask"] != 0) for _ in range(batch)])


def mmpretrain_simmim(checkout: str | None, batch: int) -> Tensor:
    """Masks of MMPretrain's SimMIMMaskGenerator: squares of 32 pixels on a regular grid."""
    generator = _mmpretrain(checkout).SimMIMMaskGenerator(GRID * PATCH, 32, PATCH, 0.5)
    return torch.stack([torch.from_numpy(generator.transform({})["mask"] != 0) for _ in range(batch)])


def _mmpretrain(checkout: str | None) -> ModuleType:
    """Load MMPretrain's transforms alone, for which mmcv-lite will do: the package needs mmcv's compiled parts."""
    package = ModuleType("mmpretrain")
    package.__path__ = [str(Path(checkout or "") / "mmpretrain")]
    sys.modules["mmpretrain"] = package
    file = "mmpretrain/datasets/transforms/processing.py"
    return _load(checkout, "--mmpretrain", "github.com/open-mmlab/mmpretrain", file)


def ijepa_targets(checkout: str | None, batch: int) -> Tensor:
    """The patches that I-JEPA has to predict: the union of four blocks, with the scales of its ImageNet runs."""
    module = _load(checkout, "--ijepa", "github.com/facebookresearch/ijepa", "src/masks/multiblock.py")
    collate = module.MaskCollator(
        enc_mask_scale=(0.85, 1.0), pred_mask_scale=(0.15, 0.2), aspect_ratio=(0.75, 1.5), npred=4, min_keep=10
    )
    # A batch has one size of blocks, so that there are many small ones.
    parts = [collate([torch.zeros(1)] * min(_JEPA_BATCH, batch))[2] for _ in range(-(-batch // _JEPA_BATCH))]
    return torch.cat([_from_indices(torch.cat(targets, 1)) for targets in parts])


def vjepa2_targets(checkout: str | None, batch: int) -> Tensor:
    """The patches of one frame that V-JEPA 2 has to predict: the union of eight small blocks."""
    module = _load(checkout, "--vjepa2", "github.com/facebookresearch/vjepa2", "src/masks/multiseq_multiblock3d.py")
    asked = {"spatial_scale": (0.15, 0.15), "temporal_scale": (1.0, 1.0), "aspect_ratio": (0.75, 1.5), "num_blocks": 8}
    collate = module.MaskCollator([asked], [2])
    sample = (torch.zeros(1), 0, [[0, 1]])  # two frames are one step in time
    parts = [collate([sample] * min(_JEPA_BATCH, batch))[0][2][0] for _ in range(-(-batch // _JEPA_BATCH))]
    return torch.cat([_from_indices(targets) for targets in parts])


def stable_pretraining_masks(checkout: str | None, batch: int, block_size: int) -> Tensor:
    """Masks of stable-pretraining's PatchMasking: single patches, or blocks."""
    where = "--stable-pretraining", "github.com/rbalestr-lab/stable-pretraining"
    # Its packages import much that masks need not; the one file that is needed is loaded under its own name.
    helper = _load(checkout, *where, "stable_pretraining/data/masking.py")
    packages = {name: ModuleType(name) for name in ("stable_pretraining", "stable_pretraining.data")}
    sys.modules.update(packages | {"stable_pretraining.data.masking": helper})
    module = _load(checkout, *where, "stable_pretraining/backbone/patch_masking.py")
    draw = module.PatchMasking(mask_ratio=0.5, block_size=block_size)
    mask: Tensor = draw(torch.zeros(batch, GRID**2, 1), GRID, GRID).mask
    return mask.view(batch, GRID, GRID) != 0


def _from_indices(hidden: Tensor) -> Tensor:
    """Return masks ``(B, gh, gw)`` of indices ``(B, n)``."""
    mask = torch.zeros(len(hidden), GRID * GRID, dtype=torch.bool).scatter_(1, hidden, True)
    return mask.view(-1, GRID, GRID)


def dinov2_generator(checkout: str | None) -> Callable[[int], Any]:
    """DINOv2's MaskingGenerator with the arguments of its training; it is called with a number of patches."""
    module = _load(checkout, "--dinov2", "github.com/facebookresearch/dinov2", "dinov2/data/masking.py")
    generator: Callable[[int], Any] = module.MaskingGenerator((GRID, GRID), max_num_patches=0.5 * GRID * GRID)
    return generator


def dinov2_masks(checkout: str | None, batch: int, device: str) -> Callable[[], Tensor]:
    """Masks of DINOv2's MaskingGenerator, a call for each image."""
    generator = dinov2_generator(checkout)
    return lambda: torch.stack([torch.from_numpy(generator(HIDDEN)) for _ in range(batch)]).to(device)


def gmml_image(checkout: str | None) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """The public code of GMML, for one image, which it writes to: noise on half of it, and the mask of the pixels."""
    _gmml(checkout)  # what is missing should be said here, not in a worker
    return functools.partial(_gmml_image, checkout)


def _gmml_image(checkout: str | None, image: Tensor) -> tuple[Tensor, Tensor]:
    corrupted, hidden = _gmml(checkout).GMML_drop_rand_patches(image, drop_type="noise", max_replace=0.5, align=PATCH)
    return corrupted, hidden


def _gmml(checkout: str | None) -> ModuleType:
    return _load(checkout, "--gmml", "github.com/Sara-Ahmed/GMML", "datasets/datasets_utils.py")


def lightly_image(image: Tensor) -> tuple[Tensor, Tensor]:
    """Noise on half of one image, by lightly's mask and torch: the fastest of four ways to write it."""
    mask = lightly_blocks(1, "cpu")()[0]
    hidden = mask.repeat_interleave(PATCH, 0).repeat_interleave(PATCH, 1).expand_as(image)
    return image.masked_scatter_(hidden, torch.randn(int(mask.sum()) * PATCH**2 * len(image))), mask


def gmml_masks(checkout: str | None, batch: int, device: str) -> Callable[[], Tensor]:
    """The public code of GMML for its masks alone: it cannot but fill, so it is given one channel."""
    corrupt, side = gmml_image(checkout), GRID * PATCH

    def draw() -> Tensor:
        masks = [corrupt(torch.zeros(1, side, side))[1] for _ in range(batch)]
        return torch.stack(masks)[:, 0, ::PATCH, ::PATCH].bool().to(device)

    return draw


def gmml_noise(checkout: str | None, images: Tensor) -> Callable[[], Tensor]:
    corrupt = gmml_image(checkout)
    return lambda: torch.stack([corrupt(image.clone())[0] for image in images])


def kornia_erasing(images: Tensor) -> Callable[[], Tensor]:
    """Kornia's random erasing: one rectangle of half the area for each image."""
    from kornia.augmentation import RandomErasing

    return functools.partial(RandomErasing(p=1.0, scale=(0.5, 0.5), ratio=(0.5, 2.0)), images)


def kornia_cutmix(images: Tensor) -> Callable[[], list[Tensor]]:
    """Kornia's CutMix: a rectangle of its own for each image."""
    from kornia.augmentation import RandomCutMixV2

    mix = RandomCutMixV2(data_keys=["input", "class"], use_correct_lambda=True)
    return functools.partial(mix, images, torch.zeros(len(images), dtype=torch.int64, device=images.device))


def kornia_patchmix(images: Tensor) -> Callable[[], Tensor]:
    """Kornia's PatchMix: a square of half the area from another image, in its own loop over the images."""
    from kornia.augmentation import PatchMix

    return functools.partial(PatchMix(patch_size=round((images.shape[-1] * images.shape[-2] / 2) ** 0.5)), images)


def torchvision_erasing(images: Tensor, value: float | str = 0.0, inplace: bool = False) -> Callable[[], object]:
    """Random erasing of torchvision, image by image: on a batch it would erase the same rectangle in all; or of one."""
    from torchvision.transforms import v2

    erase = v2.RandomErasing(p=1.0, scale=(0.5, 0.5), ratio=(0.5, 2.0), value=value, inplace=inplace)
    if images.ndim == 3:
        return lambda: erase(images)
    if inplace:
        return lambda: [erase(image) for image in images]
    return lambda: torch.stack([erase(image) for image in images])


def torchvision_cutmix(images: Tensor) -> Callable[[], tuple[Tensor, Tensor]]:
    """CutMix of torchvision: one rectangle for the whole batch, filled from the neighbour in it."""
    from torchvision.transforms import v2

    mix = v2.CutMix(num_classes=2)
    return functools.partial(mix, images, torch.zeros(len(images), dtype=torch.int64, device=images.device))


def monai_dropout(volumes: Tensor, side: int, value: Any) -> Callable[[], list[Tensor]]:
    """MONAI's holes in each volume, half as many as patches, written in place: they overlap, and hide some 37 %."""
    transforms: Any = importlib.import_module("monai.transforms")
    drop = transforms.RandCoarseDropout(volumes[0, 0].numel() // side**3 // 2, side, fill_value=value, prob=1.0)
    return lambda: [drop(volume) for volume in volumes]


def torchaudio_bars(spectrograms: Tensor) -> Callable[[], Tensor]:
    """One bar of time and one of frequency in each spectrogram (SpecAugment), of random widths: some 44 % in all."""
    try:
        from torchaudio.transforms import FrequencyMasking, TimeMasking
    except RuntimeError as error:  # it refuses a torch of another CUDA
        raise ImportError(str(error)) from error

    frequency = FrequencyMasking(spectrograms.shape[2] // 2, iid_masks=True)
    time = TimeMasking(spectrograms.shape[3] // 2, iid_masks=True)
    return lambda: time(frequency(spectrograms))


@functools.cache
def _load(checkout: str | None, option: str, repository: str, file: str) -> ModuleType:
    """Load one file of a checkout as a module. Nothing of these repositories is copied here."""
    if checkout is None:
        raise FileNotFoundError(f"needs {option} PATH, a checkout of {repository}")
    spec = importlib.util.spec_from_file_location(Path(file).stem, Path(checkout) / file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
