"""GroupMask: checks its input, samples a plan, applies it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten  # as torchvision does: torch has no public one yet

from . import inputs
from .filling import write
from .filling.fills import Fill, weighted
from .grid import as_patch_size, is_int
from .labels import owners
from .plan import MaskPlan, alone, fitted
from .rng import ARITHMETIC
from .sampling import Call, drawn
from .state import State

_CPU = torch.device("cpu")
Index = Tensor | int | None


class Masked(NamedTuple):
    """Corrupted images and their masks, from :class:`GroupMask`.

    Attributes:
        images: the corrupted images, with the shape, dtype, device, memory format and class of the input; a subclass
            keeps its attributes, such as the affine of MONAI's ``MetaTensor``.
        mask: ``(B, gh, gw)`` bool, True = hidden; ``(gh, gw)`` for one image.
    """

    images: Tensor
    mask: Tensor


class GroupMask(State):
    """Hide connected groups of patches and fill them with zeros, noise or patches of other images.

    Group Masked Model Learning: Atito, Awais and Kittler, arXiv 2205.14986, section 3.1. Everything is drawn for the
    whole batch at once, on the device of the images and without waiting for it. It comes last: what moves pixels after
    it, a flip or a crop, would leave the mask behind. It works in evaluation mode too.

    Args:
        patch_size: int or (height, width) in pixels; (depth, height, width) for volumes, or for videos with their
            channels first: groups are boxes then. 1 is allowed: groups of pixels.
        ratio: share of the patches that is hidden, in [0, 1]: a number, or (low, high) drawn uniformly per image. An
            image hides exactly ``round(ratio * patches)`` of them.
        fill: ``"zeros"``, ``"noise"``, ``"alien"``, ``"shuffle"``, ``"mean"``, an instance (``Zeros(0.5)``,
            ``Noise(0, 1)``, ``Alien()``, ``Shuffle()``, ``Mean()``), or a mapping of these to weights, of which one is
            drawn per image.
        group_size: (low, high), inclusive, of a group's side in patches; height and width are drawn independently.
            ``None`` is the paper's, 1 up to 30 % of the grid's side. ``(1, 1)`` hides single patches at random. A pair
            for each axis: ``((1, 4), (1, 64))``. Or a mapping of sizes (height, width) to weights, of which each group
            draws one: ``{(3, 3): 1}``; ``"all"`` covers its axis from end to end, ``{(1, "all"): 1, ("all", 1): 1}``,
            wherever the bar lies. :func:`block_sizes` gives the blocks of BEiT and DINOv2.
        placement: ``"uniform"``: groups may hang over the border, so that each covers every patch equally often. Only
            the cut of the last group favours some, by little unless groups are large beside what is to be hidden (see
            docs/guarantees.md). ``"inside"``: groups lie wholly inside, so the border is hidden less often.
        invert: hide all but the groups, which stay visible, with the same exact count: the inverse blocks of data2vec
            2.0 (arXiv 2212.07525), EAT (arXiv 2401.03497) and CAPI (arXiv 2502.08769).
        p: probability that an image is corrupted at all; the mask of one that is not is all False. It may be set later.
        seed: ``None``: the numbers follow torch's global generator, that of the images' device. An int: a stream of
            its own. The sample's number is then its ``index`` or, where none is given, a counter that is a buffer in
            ``state_dict()``; the workers of a DataLoader and the ranks of a job each have another stream, and so does
            each process that is forked. A new worker, for another epoch or another DataLoader, counts from the same
            number again: pass ``index=epoch * len(data) + i`` or use ``persistent_workers=True``. Under
            activation checkpointing, which calls twice, and where a pool of processes gets the transform with each of
            its tasks, pass ``index`` too.
        inplace: write into the input.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or out of range.

    Example:
        >>> corrupt = GroupMask(patch_size=16, ratio=(0.4, 0.7), fill={"noise": 1, "alien": 1})
        >>> images, mask = corrupt(torch.randn(8, 3, 224, 224))
        >>> images.shape, mask.shape
        (torch.Size([8, 3, 224, 224]), torch.Size([8, 14, 14]))
    """

    patch_size: tuple[int, ...]
    fills: tuple[Fill, ...]
    weights: tuple[float, ...]
    seed: int | None
    inplace: bool

    def __init__(
        self,
        patch_size: int | tuple[int, ...] = 16,
        ratio: float | tuple[float, float] = (0.4, 0.7),
        fill: str | Fill | Mapping[Any, float] = "noise",
        *,
        group_size: inputs.GroupSize = None,
        placement: Literal["uniform", "inside"] = "uniform",
        invert: bool = False,
        p: float = 1.0,
        seed: int | None = None,
        inplace: bool = False,
    ) -> None:
        super().__init__(inputs.as_ratio(ratio), inputs.as_share("p", p), inputs.as_seed(seed))
        self.patch_size = as_patch_size(patch_size)
        self.fills, self.weights = weighted(fill)
        self.group_size = group_size
        inputs.lies_inside(placement)
        self.placement = placement
        self.invert: bool = inputs.as_flag("invert", invert)
        self.inplace = inputs.as_flag("inplace", inplace)

    @property
    def group_size(self) -> Any:
        """The sizes of groups, as they were given; of a mapping a copy. They may be set."""
        given = self._group_size
        return dict(given) if isinstance(given, dict) else given  # a change of the mapping itself would draw nothing

    @group_size.setter
    def group_size(self, group_size: inputs.GroupSize) -> None:
        self._group_size, self._sizes = inputs.as_group_size(group_size, len(self.patch_size))

    @overload
    def forward(
        self,
        images: Tensor,
        *,
        index: Index = None,
        donors: Tensor | None = None,
        valid: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Masked: ...
    @overload
    def forward(
        self,
        images: Any,
        *others: Any,
        index: Index = None,
        donors: Tensor | None = None,
        valid: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Any: ...
    def forward(
        self,
        images: Any,
        *others: Any,
        index: Index = None,
        donors: Tensor | None = None,
        valid: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Any:
        """Corrupt a batch: :meth:`sample`, then :meth:`apply`.

        Args:
            images: ``(B, C, H, W)``; one image ``(C, H, W)``; or clips ``(B, T, C, H, W)``, each with one mask for all
                its frames. With three sides of a patch volumes ``(B, C, D, H, W)`` or one volume ``(C, D, H, W)``, and
                masks are ``(B, gd, gh, gw)``. fp16, bf16, fp32, fp64 or uint8, on any device. A ``tv_tensors.Video`` of
                four dimensions is one clip. Or a sample that has them somewhere in it, a dict or a tuple, as
                torchvision's v2 transforms take it: its images are all ``tv_tensors.Image`` and ``Video``, or its first
                plain tensor where it has none of these. Several have the same size and get the same mask.
            others: more of such a sample: ``corrupt(image, target)``.
            index: ``(B,)`` int64 (an int for one image), the samples' numbers, such as ``epoch * len(data) + i`` (a
                bare ``i`` would hide the same patches in every epoch). It needs an int seed. Masks, fills and the
                donors of a pool do not depend on how the samples are batched then; a donor from the batch does.
            donors: ``(N, C, H, W)`` or ``(N, T, C, H, W)``, of the images' dtype and device: where alien patches come
                from instead of the batch. Only :class:`Alien` takes from it; that no image is among its own donors is
                then up to the caller.
            valid: ``(B, gh, gw)`` bool (``(gh, gw)`` for one image), on the images' device: only these patches are
                hidden, ``round(ratio * valid)`` of an image with so many valid ones. For pixels without data, regions
                of interest, images that were padded. All others count as visible: shuffle and mean take from them.
            mask: ``(B, gh, gw)`` bool, True = hidden (``(gh, gw)`` for one image), on the images' device: the patches
                to hide, as an attention, a score or another library chose them. ``ratio``, ``p`` and all about groups
                have no part in it then, and each patch counts as a group of its own. See :func:`from_scores`.

        Returns:
            :class:`Masked`, the images and their patch mask; for a sample the same sample with this in the place of
            each image, and everything else as it came.

        Raises:
            TypeError, ValueError: something has the wrong type, shape or size; before anything is drawn or written.
        """
        if others or not isinstance(images, Tensor):
            return self._within((images, *others) if others else images, donors, index, valid, mask)
        batch, single = inputs.as_batch(images, len(self.patch_size))
        self._check(images, batch, donors)
        plan = self._draw(() if single else batch.shape[:1], batch.shape, batch.device, index, valid, mask)
        return self._write(images, plan, donors)

    def sample(
        self,
        images_or_shape: Tensor | Sequence[int],
        *,
        index: Index = None,
        valid: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> MaskPlan:
        """Draw what is to be hidden and with what, without touching a pixel.

        Args:
            images_or_shape: the images, or their shape (the plan is then on the CPU; see :meth:`MaskPlan.to`).
            index: as in :meth:`forward`.
            valid: as in :meth:`forward`; on the CPU where only a shape is given.
            mask: likewise.

        Returns:
            :class:`MaskPlan`, on the images' device.

        Raises:
            TypeError, ValueError: as :meth:`forward`.
        """
        if isinstance(images_or_shape, Sequence) and all(map(is_int, images_or_shape)):
            axes = len(self.patch_size)
            inputs.check_dimensions(images_or_shape, axes)
            # NumPy's integers would overflow, and equal plain ones in a cache; the compiler's have no number.
            shape = [n if type(n) is int or isinstance(n, torch.SymInt) else int(n) for n in images_or_shape]
            return self._draw(shape[: -axes - 1][:1], shape, _CPU, index, valid, mask)
        batch, single = inputs.as_batch(images_or_shape, len(self.patch_size))
        plan = self._draw(() if single else batch.shape[:1], batch.shape, batch.device, index, valid, mask)
        return plan if plan.mask.device == batch.device else plan.to(batch.device)

    @overload
    def apply(self, images: Tensor, plan: MaskPlan, *, donors: Tensor | None = None) -> Masked: ...
    @overload
    def apply(self, images: Callable[[nn.Module], None]) -> GroupMask: ...
    def apply(self, images: Any, plan: MaskPlan | None = None, *, donors: Tensor | None = None) -> Masked | GroupMask:
        """Write what a plan says.

        With a function alone this is :meth:`torch.nn.Module.apply`, which a model that holds a GroupMask relies on.

        Args:
            images: as in :meth:`forward`, of the size that the plan was drawn for.
            plan: from :meth:`sample`, on the images' device; put together or cut apart as :class:`MaskPlan` says.
            donors: as in :meth:`forward`.

        Returns:
            :class:`Masked`, the images and the plan's mask.

        Raises:
            TypeError, ValueError: as :meth:`forward`; or the plan is of another size, on another device, or was drawn
                for more fills (on an accelerator an assertion on the device fails instead: nothing is waited for).
        """
        if plan is None and callable(images) and not isinstance(images, Tensor):
            return super().apply(images)
        if not isinstance(plan, MaskPlan):
            raise TypeError(f"apply takes images and a MaskPlan, as sample(images) draws it; got {type(plan).__name__}")
        batch, single = inputs.as_batch(images, len(self.patch_size))
        inputs.check_plan(plan, images, batch, inputs.checked_grid(batch.shape, self.patch_size), single)
        self._check(images, batch, donors)
        return self._write(images, fitted(plan, len(self.fills)), donors)

    def owner(self, plan: MaskPlan) -> Tensor:
        """Return which image of the batch each patch shows once the plan is applied; see :func:`mix_labels`.

        Args:
            plan: from :meth:`sample`, of a batch; applied without ``donors``.

        Returns:
            ``(B, gh, gw)`` int64: the donor's place in the batch where :class:`Alien` hides a patch, else the image's
            own, whether the patch is visible or hidden by another fill.

        Raises:
            TypeError, ValueError: this is no plan of a batch, or of one without another image to take aliens from.
        """
        return owners(plan, self.fills)

    def extra_repr(self) -> str:
        names = ", ".join(f"{fill}: {weight:g}" for fill, weight in zip(self.fills, self.weights, strict=True))
        return (
            f"patch_size={self.patch_size}, ratio={self.ratio}, fill={{{names}}}, group_size={self.group_size}, "
            f"placement={self.placement!r}, invert={self.invert}, p={self.p:g}, seed={self.seed}, "
            f"inplace={self.inplace}"
        )

    def _within(self, sample: Any, donors: Tensor | None, *asked: Any) -> Any:
        """Corrupt the images of a sample, all by one plan."""
        leaves, structure = tree_flatten(sample)
        places, first, single = inputs.within(leaves, self.inplace, len(self.patch_size))
        for place in places:
            batch, _ = inputs.as_batch(leaves[place], len(self.patch_size))
            self._check(leaves[place], batch, donors)
        plan = self._draw(() if single else first.shape[:1], first.shape, first.device, *asked)
        written: dict[int, Masked] = {}
        for place in places:
            image = leaves[place]
            if id(image) not in written:
                written[id(image)] = self._write(image, plan, donors)
            leaves[place] = written[id(image)]
        return tree_unflatten(leaves, structure)

    def _check(self, images: Tensor, batch: Tensor, donors: Tensor | None) -> None:
        grid = inputs.checked_grid(batch.shape, self.patch_size)
        if inputs.as_flag("inplace", self.inplace):
            inputs.check_writable(images)
        if donors is not None:
            if donors is images:
                raise ValueError("these donors are the images themselves; leave donors out to draw them from the batch")
            inputs.check_donors(donors, batch)
        for fill in self.fills:
            fill.check(batch, grid, donors)

    def _draw(
        self, batch: Sequence[int], shape: Sequence[int], device: torch.device, index: Any, valid: Any, mask: Any
    ) -> MaskPlan:
        """Draw for a batch ``(B,)``, or for one image ``()``, of this shape."""
        counter: Tensor = self._buffers["counter"]  # type: ignore[assignment]  # as self.counter, but quicker
        if counter.is_meta and device.type != "meta":
            raise ValueError(
                "this GroupMask is on the meta device; move it by .to_empty() and load its state, or build it again"
            )
        named = None if index is None else inputs.as_index(index, batch)
        if named is not None and self.seed is None:
            raise ValueError(
                "index= names samples of a seed's stream, and this GroupMask has seed=None; give it an int"
            )
        if "_is_replica" in self.__dict__ and named is None and self.seed is not None:
            raise ValueError(
                "DataParallel copies the counter to each of its replicas, which would all draw the same masks; use "
                "DistributedDataParallel, seed=None or index=, or corrupt the batch before it is scattered"
            )
        # Devices that lack the arithmetic have their plans drawn on the CPU.
        where, inside = device if device.type in ARITHMETIC else _CPU, inputs.lies_inside(self.placement)
        shares = self._shares
        sizes, weights, largest = self._sizes
        grid = inputs.checked_grid(shape, self.patch_size, largest if mask is None else ())
        if valid is not None:
            if mask is not None:
                raise ValueError("mask= says what is hidden, so valid= has no part in it; pass mask=mask & valid alone")
            valid = inputs.as_patches("valid", valid, (*batch, *grid), device).to(where)
        if mask is not None:  # no group is drawn, as for a ratio of 0
            mask, shares = inputs.as_patches("mask", mask, (*batch, *grid), device).to(where, copy=True), 0 * shares
        asked = grid, shares, sizes, inside, self.weights, inputs.as_flag("invert", self.invert), weights
        plan = drawn(Call(counter, named, valid, inputs.as_seed(self.seed), self._home, batch, where, *asked))
        return plan if mask is None else plan._replace(mask=mask, group=alone(mask, grid))

    def _write(self, images: Tensor, plan: MaskPlan, donors: Tensor | None) -> Masked:
        mask = plan.mask.to(images.device, non_blocking=True)
        batch, single = inputs.as_batch(images, len(self.patch_size))
        if single:
            plan = MaskPlan(*(field[None] for field in plan))
        out = write(batch, plan, self.fills, None if donors is None else inputs.plain(donors), self.inplace)
        if self.inplace:
            return Masked(images, mask)
        if single:
            out = out[0]
        kind = type(images)
        if kind in (Tensor, nn.Parameter, type(out)):
            return Masked(out, mask)
        out = out.as_subclass(kind)
        for name, value in vars(images).items():
            setattr(out, name, value.copy() if isinstance(value, (dict, list)) else value)
        return Masked(out, mask)
