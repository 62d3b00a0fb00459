"""Views of a batch, as the network sees it: crops, flips and jitter for all of it at once, on the device."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms import v2

from .data.sources import Data


class Views:
    """A batch as the network sees it: augmented, or as it is; normalised."""

    def __init__(self, data: Data) -> None:
        self.data = data
        self.to_size = v2.CenterCrop(data.image_size)

    def augmented(self, raw: Tensor, rows: slice = slice(None), total: int | None = None) -> Tensor:
        """Crop, flip and jitter images ``(B, C, S, S)``, which are the given rows of a batch of ``total``.

        The parameters are drawn for the whole batch from torch's generator: processes that share a seed and a batch see
        the same crops as one that has it alone.
        """
        images = _to_float(raw)
        drawn = self.data.augmentation.forward_parameters(torch.Size([total or len(images), *images.shape[1:]]))
        whole = ("forward_input_shape", "order")  # of the batch, where all others have a row for each image
        params = [
            type(item)(item.name, {k: v if k in whole else v[rows] for k, v in item.data.items()})  # type: ignore[union-attr]
            for item in drawn
        ]
        return self._normalised(self.data.augmentation(images, params=params))

    def plain(self, raw: Tensor) -> Tensor:
        return self._normalised(self.to_size(_to_float(raw)))

    def _normalised(self, images: Tensor) -> Tensor:
        normalised: Tensor = v2.functional.normalize(images, self.data.mean, self.data.std)
        return normalised

    def shown(self, images: Tensor) -> Tensor:
        """Return normalised images as they are shown, in [0, 1]."""
        mean, std = (torch.tensor(values)[:, None, None].to(images) for values in (self.data.mean, self.data.std))
        return (images * std + mean).clamp(0, 1)


def _to_float(raw: Tensor) -> Tensor:
    return raw.float() / 255 if raw.dtype == torch.uint8 else raw
