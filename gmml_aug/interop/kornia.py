"""GroupMask as a Kornia augmentation; needs Kornia 0.9 or newer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import kornia
import torch
from kornia.augmentation import IntensityAugmentationBase2D
from torch import Tensor

from ..filling.fills import Fill
from ..inputs import GroupSize, as_flag, as_share
from ..plan import MaskPlan
from ..transform import GroupMask

if tuple(map(int, kornia.__version__.split(".")[:2])) < (0, 9):  # whose p cuts the chosen images out of their batch
    raise ImportError(f"RandomGroupMask needs Kornia 0.9 or newer; got {kornia.__version__}; upgrade kornia")

# A donor follows from its image's key and the batch it stands in, which a container may still change.
_RECORDED = tuple(name for name in MaskPlan._fields if name != "donor")


class RandomGroupMask(IntensityAugmentationBase2D):
    """Hide connected groups of patches: :class:`~gmml_aug.GroupMask` for Kornia's pipelines.

    It takes ``(B, C, H, W)`` or ``(C, H, W)`` in fp16, bf16, fp32 or fp64, and returns the corrupted images alone, as
    every Kornia augmentation does. Which patches it hid is in :attr:`mask`.

    It works in ``AugmentationSequential``, ``ImageSequential`` and ``VideoSequential``. It moves no pixel, so it leaves
    alone what is passed beside the image: a segmentation mask, boxes, keypoints, labels; ``transform_matrix`` is the
    identity, and ``inverse`` skips it.

    The draws are in ``_params``: ``mask``, ``fill``, ``key`` and ``group``, each with the batch first, beside
    Kornia's own ``batch_prob``. ``aug(images, params=aug._params)`` repeats it bit for bit, or hides the same patches
    of another view. Numbers are drawn on the device to which the module was moved, the CPU before that, as Kornia's own
    are, and copied to the images.

    Alien patches come from anywhere in the batch, from images that ``p`` left alone too, so a batch of one is refused
    whatever ``p`` draws. In ``VideoSequential`` the frames of a clip have the same patches, fill and noise, and alien
    patches come from the same frame of another clip; with ``same_on_frame=False`` each frame is an image by itself.

    Args:
        patch_size: int or (height, width) in pixels; this and the next five are as in :class:`~gmml_aug.GroupMask`.
        ratio: share of the patches that is hidden, or (low, high).
        fill: what replaces them, or a mapping of fills to weights.
        group_size: (low, high), inclusive, of a group's side in patches, or any of the others.
        placement: ``"uniform"`` or ``"inside"``.
        invert: hide all but the groups.
        seed: ``None``: the numbers follow torch's global generator. An int: a stream of its own, whose counter is in
            ``state_dict()``. There is no ``index``, since Kornia draws from a shape alone.
        same_on_batch: one draw for all images: the same patches, the same fill, the same noise. Each image takes its
            alien patches from the one that stands the same number of places after it, never from itself.
        p: probability that an image is corrupted. The default is 1, that of :class:`~gmml_aug.GroupMask`, and not 0.5
            as in most of Kornia: a model that learns from what is hidden learns nothing from the other images.
        keepdim: give one image ``(C, H, W)`` back as such, and not as a batch of one.

    Attributes:
        group_mask: the :class:`~gmml_aug.GroupMask` that draws and writes; its ``ratio`` may be set.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or out of range; when called, as
            :class:`~gmml_aug.GroupMask`. A dtype or a number of dimensions that Kornia does not take is refused by it.

    Example:
        >>> from kornia.augmentation import AugmentationSequential, RandomHorizontalFlip
        >>> corrupt = RandomGroupMask(16, ratio=(0.4, 0.7), fill={"noise": 1, "alien": 1})
        >>> augment = AugmentationSequential(RandomHorizontalFlip(), corrupt, data_keys=["input", "mask"])
        >>> images, labels = augment(torch.rand(8, 3, 224, 224), torch.zeros(8, 1, 224, 224))
        >>> images.shape, corrupt.mask.shape
        (torch.Size([8, 3, 224, 224]), torch.Size([8, 14, 14]))
    """

    def __init__(
        self,
        patch_size: int | tuple[int, int] = 16,
        ratio: float | tuple[float, float] = (0.4, 0.7),
        fill: str | Fill | Mapping[Any, float] = "noise",
        *,
        group_size: GroupSize = None,
        placement: Literal["uniform", "inside"] = "uniform",
        invert: bool = False,
        seed: int | None = None,
        same_on_batch: bool = False,
        p: float = 1.0,
        keepdim: bool = False,
    ) -> None:
        flags = {"same_on_batch": as_flag("same_on_batch", same_on_batch), "keepdim": as_flag("keepdim", keepdim)}
        super().__init__(p=as_share("p", p), **flags)
        # With p=1: which images are left alone is Kornia's to draw.
        self.group_mask: GroupMask = GroupMask(
            patch_size, ratio, fill, group_size=group_size, placement=placement, invert=invert, seed=seed
        )
        if len(self.group_mask.patch_size) != 2:
            raise ValueError(f"RandomGroupMask takes images; got a patch_size of three sides, {patch_size}")
        self._mask: Tensor | None = None

    @property
    def mask(self) -> Tensor:
        """Which patches were hidden last, ``(B, gh, gw)`` bool on the images' device, True = hidden.

        The row of an image that ``p`` left alone is all False. In ``VideoSequential`` it has a row for each frame,
        ``(B * T, gh, gw)``, clip by clip. Where ``random_apply`` passed this module over, it is that of an earlier
        call; the container's own ``_params`` tell which modules ran.

        Raises:
            RuntimeError: it was not called yet.
        """
        if self._mask is None:
            raise RuntimeError("no mask yet: this RandomGroupMask has not been called")
        return self._mask

    def generate_parameters(self, batch_shape: tuple[int, ...]) -> dict[str, Tensor]:
        """Draw for a batch of this shape: ``mask``, ``fill``, ``key`` and ``group``, each with the batch first."""
        draws, times = (1, batch_shape[0]) if self.same_on_batch else (batch_shape[0], 1)
        plan = self.group_mask.sample(torch.empty((), device=self.device).expand(draws, *batch_shape[1:]))
        return {
            name: field.repeat(times, *(1,) * (field.ndim - 1))
            for name, field in plan._asdict().items()
            if name in _RECORDED
        }

    def apply_transform(
        self, input: Tensor, params: dict[str, Tensor], flags: dict[str, Any], transform: Tensor | None = None
    ) -> Tensor:
        """Write what was drawn, and keep its mask."""
        drawn = {name: params[name].to(input.device, non_blocking=True) for name in _RECORDED}
        if (self.p, self.p_batch) != (1, 1):  # otherwise Kornia does not ask
            applied = (params["batch_prob"] > 0.5).to(input.device, non_blocking=True)
            drawn["mask"] = drawn["mask"] & applied[:, None, None]
        if "video_batch_size" in params and len(input) != int(params["forward_input_shape"][0]):
            # One draw for many frames. They come clip by clip; each is written beside the same frame of other clips.
            clips = int(params["video_batch_size"])
            frames = input.unflatten(0, (clips, -1)).transpose(0, 1).contiguous()  # rows side by side: quick to write
            plans = {name: field.unflatten(0, (clips, len(frames))) for name, field in drawn.items()}
            written = [
                self._write(images, {name: field[:, t] for name, field in plans.items()})
                for t, images in enumerate(frames)
            ]
            out = torch.stack(written, 1).flatten(0, 1)
        else:
            out = self._write(input, drawn)
        self._mask = drawn["mask"]
        return out

    def _write(self, images: Tensor, drawn: dict[str, Tensor]) -> Tensor:
        plan = MaskPlan(**drawn, donor=drawn["key"])
        batch = len(plan.key)
        place = torch.arange(batch, device=images.device)
        donor = (place + 1 + plan.pool_donor(batch - 1)) % max(batch, 1)  # never the image itself, whatever its key
        return self.group_mask.apply(images, plan._replace(donor=donor)).images

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.group_mask}, p={self.p}, same_on_batch={self.same_on_batch})"
