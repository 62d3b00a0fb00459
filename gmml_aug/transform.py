"""GroupMask: checks its input, samples a plan, applies it."""

from __future__ import annotations

import itertools
import numbers
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten  # as torchvision does: torch has no public one yet

from .fills import Alien, Fill, weighted
from .grid import as_patch_size, grid_size, is_int
from .groups import group_range
from .plan import MaskPlan, group_rank
from .write import share_memory, write

_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.uint8)
_MOST_PATCHES = 2**22  # what the order of the patches has bits for


class Masked(NamedTuple):
    """What :class:`GroupMask` returns.

    Attributes:
        images: the corrupted images, with the shape, dtype, device, memory format and class of the input.
        mask: ``(B, gh, gw)`` bool, True = hidden; ``(gh, gw)`` for one image.
    """

    images: Tensor
    mask: Tensor


class GroupMask(nn.Module):
    """Hide connected groups of patches and fill them with zeros, noise or patches of other images.

    Group Masked Model Learning: Atito, Awais and Kittler, arXiv 2205.14986, section 3.1. Everything is drawn for the
    whole batch at once, on the device of the images and without waiting for it. It comes last: what moves pixels after
    it, a flip or a crop, would leave the mask behind. It works in evaluation mode too.

    Args:
        patch_size: int or (height, width) in pixels. 1 is allowed: groups of pixels.
        ratio: share of the patches that is hidden, in [0, 1]: a number, or (low, high) drawn uniformly per image. An
            image hides exactly ``round(ratio * patches)`` of them.
        fill: ``"zeros"``, ``"noise"``, ``"alien"``, ``"shuffle"``, an instance (``Zeros(0.5)``, ``Noise(0, 1)``,
            ``Alien()``, ``Shuffle()``), or a mapping of these to weights, of which one is drawn per image.
        group_size: (low, high), inclusive, of a group's side in patches; height and width are drawn independently.
            ``None`` is the paper's, 1 up to 30 % of the grid's side. ``(1, 1)`` hides single patches at random.
        placement: ``"uniform"``: groups may hang over the border, so every patch is hidden equally often.
            ``"inside"``: groups lie wholly inside, so the border is hidden less often.
        p: probability that an image is corrupted at all; the mask of one that is not is all False.
        seed: ``None``: the numbers follow torch's global generator, that of the images' device. An int: a stream of
            its own. The sample's number is then its ``index`` or, where none is given, a counter that is a buffer in
            ``state_dict()``; the workers of a DataLoader and the ranks of a job each have another stream. A worker
            that is started anew, for another epoch or another DataLoader, counts from the same number again: pass
            ``index=epoch * len(data) + i`` or use ``persistent_workers=True``. Under activation checkpointing, which
            calls twice, pass ``index`` too.
        inplace: write into the input.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or out of range.

    Example:
        >>> corrupt = GroupMask(patch_size=16, ratio=(0.4, 0.7), fill={"noise": 1, "alien": 1})
        >>> images, mask = corrupt(torch.randn(8, 3, 224, 224))
        >>> images.shape, mask.shape
        (torch.Size([8, 3, 224, 224]), torch.Size([8, 14, 14]))
    """

    counter: Tensor

    def __init__(
        self,
        patch_size: int | tuple[int, int] = 16,
        ratio: float | tuple[float, float] = (0.4, 0.7),
        fill: str | Fill | Mapping[Any, float] = "noise",
        *,
        group_size: tuple[int, int] | None = None,
        placement: Literal["uniform", "inside"] = "uniform",
        p: float = 1.0,
        seed: int | None = None,
        inplace: bool = False,
    ) -> None:
        super().__init__()
        self.patch_size = as_patch_size(patch_size)
        self.ratio = ratio
        self.fills, self.weights = weighted(fill)
        self.group_size = _as_group_size(group_size)
        if placement not in ("uniform", "inside"):
            raise ValueError(f"placement is 'uniform' or 'inside'; got {placement!r}")
        self.placement = placement
        self.p = _as_share("p", p)
        self.seed = _as_seed(seed)
        self.inplace = inplace
        self._home_rank: int | None = None
        # With no seed nothing hangs on the counter, so it stays out of checkpoints.
        self.register_buffer("counter", _counter(0, "cpu"), persistent=seed is not None)

    @property
    def ratio(self) -> tuple[float, float]:
        """The range of the hidden share. It may be set, to a number or a pair, as a schedule does."""
        return self._ratio

    @ratio.setter
    def ratio(self, ratio: float | tuple[float, float]) -> None:
        self._ratio = _as_ratio(ratio)

    @overload
    def forward(self, images: Tensor, *, index: Tensor | int | None = None, donors: Tensor | None = None) -> Masked: ...
    @overload
    def forward(
        self, images: Any, *others: Any, index: Tensor | int | None = None, donors: Tensor | None = None
    ) -> Any: ...
    def forward(
        self, images: Any, *others: Any, index: Tensor | int | None = None, donors: Tensor | None = None
    ) -> Any:
        """Corrupt a batch: :meth:`sample`, then :meth:`apply`.

        Args:
            images: ``(B, C, H, W)``; one image ``(C, H, W)``; or clips ``(B, T, C, H, W)``, each with one mask for all
                its frames. fp16, bf16, fp32, fp64 or uint8, on any device. A ``tv_tensors.Video`` of four dimensions
                is one clip. Or a sample that has them somewhere in it, a dict or a tuple, as torchvision's v2
                transforms take it: its images are all ``tv_tensors.Image`` and ``Video``, or its first plain tensor
                where it has none of these. Several have the same size and get the same mask.
            others: more of such a sample: ``corrupt(image, target)``.
            index: ``(B,)`` int64 (an int for one image), the samples' numbers, such as ``epoch * len(data) + i`` (a
                bare ``i`` would hide the same patches in every epoch). With them and an int seed, masks, fills and the
                donors of a pool do not depend on how the samples are batched; a donor from the batch does.
            donors: ``(N, C, H, W)`` or ``(N, T, C, H, W)``, of the images' dtype and device: where alien patches come
                from instead of the batch. Only :class:`Alien` takes from it; that no image is among its own donors is
                then up to the caller.

        Returns:
            :class:`Masked`, the images and their patch mask; for a sample the same sample with this in the place of
            each image, and everything else as it came.

        Raises:
            TypeError, ValueError: something has the wrong type, shape or size; before anything is drawn or written.
        """
        if others or not isinstance(images, Tensor):
            return self._within((images, *others) if others else images, index, donors)
        batch, single = _as_batch(images)
        self._check(images, batch, self._grid(batch), donors)
        return self._write(images, self._draw(batch, single, index), donors)

    def sample(self, images_or_shape: Tensor | Sequence[int], *, index: Tensor | int | None = None) -> MaskPlan:
        """Draw what is to be hidden and with what, without touching a pixel.

        Args:
            images_or_shape: the images, or their shape (the plan is then on the CPU; see :meth:`MaskPlan.to`).
            index: as in :meth:`forward`.

        Returns:
            :class:`MaskPlan`, on the images' device.

        Raises:
            TypeError, ValueError: as :meth:`forward`.
        """
        if isinstance(images_or_shape, Sequence) and all(map(is_int, images_or_shape)):
            if any(side < 0 for side in images_or_shape):
                raise ValueError(f"a shape has no negative sizes; got {tuple(images_or_shape)}")
            images_or_shape = torch.empty((), device="cpu").expand(*images_or_shape)
        batch, single = _as_batch(images_or_shape)
        return self._draw(batch, single, index)

    @overload
    def apply(self, images: Tensor, plan: MaskPlan, *, donors: Tensor | None = None) -> Masked: ...
    @overload
    def apply(self, images: Callable[[nn.Module], None]) -> GroupMask: ...
    def apply(self, images: Any, plan: MaskPlan | None = None, *, donors: Tensor | None = None) -> Masked | GroupMask:
        """Write what a plan says.

        With a function alone this is :meth:`torch.nn.Module.apply`, which a model that holds a GroupMask relies on.

        Args:
            images: as in :meth:`forward`, of the size that the plan was drawn for.
            plan: from :meth:`sample`, on the images' device.
            donors: as in :meth:`forward`.

        Returns:
            :class:`Masked`, the images and the plan's mask.

        Raises:
            TypeError, ValueError: as :meth:`forward`, or the plan is of another size or on another device.
        """
        if plan is None and callable(images) and not isinstance(images, Tensor):
            return super().apply(images)
        if not isinstance(plan, MaskPlan):
            raise TypeError(f"apply takes images and a MaskPlan, as sample(images) draws it; got {type(plan).__name__}")
        batch, single = _as_batch(images)
        grid = self._grid(batch)
        expected = grid if single else (batch.shape[0], *grid)
        shapes = {name: expected if name in ("mask", "group") else expected[:-2] for name in MaskPlan._fields}
        for name, shape in shapes.items():
            if getattr(plan, name).shape != shape:
                raise ValueError(
                    f"the plan is for a {name} of {tuple(getattr(plan, name).shape)}, but images of "
                    f"{tuple(images.shape)} with patches of {self.patch_size} need {tuple(shape)}; draw it by sample() "
                    "with these images or their shape"
                )
        if plan.mask.dtype != torch.bool:
            raise TypeError(f"a plan's mask is bool, True = hidden; got {plan.mask.dtype}")
        for name, field in zip(MaskPlan._fields[1:], plan[1:], strict=True):
            if field.dtype != (wanted := torch.int32 if name == "group" else torch.int64):
                raise TypeError(f"a plan's {name} is {str(wanted).removeprefix('torch.')}; got {field.dtype}")
        for field in plan:
            if field.device != batch.device:
                raise ValueError(
                    f"the plan is on {field.device} and the images on {batch.device}; "
                    f"move it by plan.to({str(batch.device)!r})"
                )
        if len(self.fills) == 1:  # whatever fills the plan was drawn for
            plan = plan._replace(fill=torch.zeros_like(plan.fill))
        self._check(images, batch, grid, donors)
        return self._write(images, plan, donors)

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
        if not isinstance(plan, MaskPlan):
            raise TypeError(f"owner takes a MaskPlan, as sample(images) draws it; got {type(plan).__name__}")
        if plan.mask.ndim != 3:
            raise ValueError("a plan of one image has no other image to show; draw it for a batch (B, C, H, W)")
        owner = torch.arange(len(plan.mask), device=plan.mask.device)[:, None, None].expand(plan.mask.shape)
        for i, fill in enumerate(self.fills):
            if isinstance(fill, Alien):
                if len(plan.mask) == 1:
                    raise ValueError("this plan is for a batch of one, which has no other image to take aliens from")
                donor = plan.donor[:, None, None] if fill.per == "image" else plan.group_donor()
                here = plan.mask if len(self.fills) == 1 else plan.mask & (plan.fill == i)[:, None, None]
                owner = torch.where(here, donor, owner)
        return owner.contiguous()

    def extra_repr(self) -> str:
        names = ", ".join(f"{fill}: {weight:g}" for fill, weight in zip(self.fills, self.weights, strict=True))
        return (
            f"patch_size={self.patch_size}, ratio={self.ratio}, fill={{{names}}}, group_size={self.group_size}, "
            f"placement={self.placement!r}, p={self.p:g}, seed={self.seed}, inplace={self.inplace}"
        )

    def __getstate__(self) -> dict[str, Any]:
        # What is pickled here may be unpickled in a DataLoader worker, which cannot ask for its rank. The counter goes
        # as a number: as a tensor, all these processes would share its memory and count for each other.
        return {
            **self.__dict__,
            "_buffers": {**self._buffers, "counter": None},
            "_counted": (int(self.counter), self.counter.device),
            "_home_rank": self._home_rank if (rank := group_rank()) is None else rank,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        number, device = self.__dict__.pop("_counted")
        self.counter = _counter(number, device)

    def _within(self, sample: Any, index: Tensor | int | None, donors: Tensor | None) -> Any:
        """Corrupt the images of a sample, all by one plan."""
        leaves, structure = tree_flatten(sample)
        places = _places_of_images(leaves)
        if not places and len(leaves) == 1:
            places = [0]  # whatever it is, the error names it
        if not places:
            kinds = ", ".join(sorted({type(leaf).__name__ for leaf in leaves})) or "nothing"
            raise TypeError(f"this sample has no image, which is a tv_tensor or a plain tensor; it has {kinds}")
        batches = [_as_batch(leaves[place]) for place in places]
        first, single = batches[0]
        for batch, alone in batches[1:]:
            same = (single, len(first), *first.shape[-2:], first.device)
            if (alone, len(batch), *batch.shape[-2:], batch.device) != same:
                each = (f"{tuple(leaves[place].shape)} on {leaves[place].device}" for place in places)
                raise ValueError(
                    "the images of a sample get the same mask, so they have the same size and device; got "
                    f"{' and '.join(each)}"
                )
        for place, (batch, _) in zip(places, batches, strict=True):
            self._check(leaves[place], batch, self._grid(batch), donors)
        distinct = {id(leaves[place]): leaves[place] for place in places}.values()  # one may stand in it twice
        known = not torch.compiler.is_compiling() and not first.is_meta  # where in memory they are
        if self.inplace and known and any(share_memory(*pair) for pair in itertools.combinations(distinct, 2)):
            raise ValueError(
                "inplace=True cannot write into images of a sample that share memory with each other; pass clones"
            )
        plan = self._draw(first, single, index)
        written: dict[int, Masked] = {}
        for place in places:
            image = leaves[place]
            if id(image) not in written:
                written[id(image)] = self._write(image, plan, donors)
            leaves[place] = written[id(image)]
        return tree_unflatten(leaves, structure)

    def _grid(self, batch: Tensor) -> tuple[int, int]:
        grid = grid_size(batch.shape[-2], batch.shape[-1], self.patch_size)
        if grid[0] * grid[1] > _MOST_PATCHES:
            raise ValueError(
                f"a grid of {grid[0]} x {grid[1]} patches has more than {_MOST_PATCHES}; use a larger patch_size"
            )
        return grid

    def _check(self, images: Tensor, batch: Tensor, grid: tuple[int, int], donors: Tensor | None) -> None:
        if self.inplace:
            _check_writable(images)
        if donors is not None:
            if donors is images:
                raise ValueError("these donors are the images themselves; leave donors out to draw them from the batch")
            _check_donors(donors, batch)
        for fill in self.fills:
            fill.check(batch, grid, donors)

    def _draw(self, batch: Tensor, single: bool, index: Tensor | int | None) -> MaskPlan:
        rows, columns = self._grid(batch)
        if self.counter.is_meta and not batch.is_meta:
            raise ValueError(
                "this GroupMask is on the meta device; move it by .to_empty() and load its state, or build it anew"
            )
        plan = MaskPlan(
            *torch.ops.gmml_aug.draw.default(
                self.counter,
                _as_index(index, batch.shape[0], single),
                self.seed,
                self._home_rank,
                batch.shape[0],
                (rows, columns),
                batch.device,
                self.ratio,
                (*group_range(rows, self.group_size), *group_range(columns, self.group_size)),
                self.placement == "inside",
                self.p,
                self.weights,
            )
        )
        return MaskPlan(*(field[0] for field in plan)) if single else plan

    def _write(self, images: Tensor, plan: MaskPlan, donors: Tensor | None) -> Masked:
        mask = plan.mask
        batch, single = _as_batch(images)
        if single:
            plan = MaskPlan(*(field[None] for field in plan))
        out = write(batch, plan, self.fills, self.patch_size, None if donors is None else _plain(donors), self.inplace)
        if self.inplace:
            return Masked(images, mask)
        if single:
            out = out[0]
        kind = type(images)
        return Masked(out if kind in (Tensor, nn.Parameter, type(out)) else out.as_subclass(kind), mask)


def _plain(images: Tensor) -> Tensor:
    # What dispatches by itself, such as a FakeTensor, stays what it is: torch 2.7 cannot make a plain tensor of it.
    kind = type(images)
    stays = kind is Tensor or kind.__torch_dispatch__ is not Tensor.__torch_dispatch__
    return images if stays else images.as_subclass(Tensor)


def _places_of_images(leaves: Sequence[object]) -> list[int]:
    """Return which leaves of a sample are its images, by the rule of torchvision's v2 transforms."""
    tv_tensors, pil = sys.modules.get("torchvision.tv_tensors"), sys.modules.get("PIL.Image")
    images = (tv_tensors.Image, tv_tensors.Video) if tv_tensors else ()
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, (*images, *((pil.Image,) if pil else ())))]
    if places:
        return places
    special = (tv_tensors.TVTensor,) if tv_tensors else ()
    return [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and not isinstance(leaf, special)][:1]


def _as_batch(images: object) -> tuple[Tensor, bool]:
    """Return a view of the images with a batch dimension, and whether it was added; refuse what is no image."""
    if not isinstance(images, Tensor):
        kind = f"{type(images).__module__}.{type(images).__qualname__}"
        hint = "give a torch.Tensor"
        if kind.startswith("PIL."):
            hint = "convert it first, by torchvision.transforms.v2.functional.pil_to_tensor(image) or v2.ToImage()"
        elif kind.startswith("numpy."):
            hint = "convert it first, by torch.from_numpy(array), with the channels in front of height and width"
        raise TypeError(f"GroupMask takes tensors of images; got {kind}; {hint}")
    tv_tensors = sys.modules.get("torchvision.tv_tensors")
    if (
        tv_tensors
        and isinstance(images, tv_tensors.TVTensor)
        and not isinstance(images, (tv_tensors.Image, tv_tensors.Video))
    ):
        raise TypeError(f"GroupMask takes images; got a tv_tensors.{type(images).__name__}, which is none")
    batch = _plain(images)
    if batch.dtype not in _DTYPES:
        raise TypeError(
            f"images are {', '.join(str(d).removeprefix('torch.') for d in _DTYPES)}; got {batch.dtype}; they come "
            "before labels, and torchvision.transforms.v2.functional.to_dtype(images, torch.float32) converts them"
        )
    if batch.ndim not in (3, 4, 5):
        raise ValueError(
            f"images are (B, C, H, W), one image (C, H, W) or clips (B, T, C, H, W); got {tuple(batch.shape)}"
        )
    clip = batch.ndim == 4 and tv_tensors is not None and isinstance(images, tv_tensors.Video)
    single = batch.ndim == 3 or clip
    return (batch[None] if single else batch), single


def _as_index(index: Tensor | int | None, batch: int, single: bool) -> Tensor | None:
    if index is None:
        return None
    if is_int(index):
        index = torch.tensor(int(index), device="cpu")
    if not isinstance(index, Tensor) or index.dtype != torch.int64:
        got = index.dtype if isinstance(index, Tensor) else type(index).__name__
        raise TypeError(f"index is an int64 tensor of the samples' numbers, or an int for one image; got {got}")
    if index.shape != (batch,) and not (single and index.ndim == 0):
        raise ValueError(f"index has one number for each sample, shape ({batch},); got {tuple(index.shape)}")
    return index.reshape(-1)


def _counter(number: int, device: torch.device | str) -> Tensor:
    with torch.inference_mode(False):  # or a module built under it could not count outside
        return torch.tensor(number, dtype=torch.int64, device=device)


def _check_writable(images: Tensor) -> None:
    if images.requires_grad and images.is_leaf and torch.is_grad_enabled():
        raise ValueError("inplace=True cannot write into a leaf that requires gradients; use inplace=False")
    reach = 1
    for stride, side in sorted((s, n) for s, n in zip(images.stride(), images.shape, strict=True) if n > 1):
        if stride < reach:
            raise ValueError(
                f"inplace=True cannot write into images that share memory with each other (strides {images.stride()}, "
                "as expand and unfold make them); pass images.clone()"
            )
        reach = stride * side


def _check_donors(donors: object, batch: Tensor) -> None:
    wanted = f"(N, {', '.join(map(str, batch.shape[1:]))})"
    if not isinstance(donors, Tensor):
        raise TypeError(f"donors is a tensor of images {wanted}; got {type(donors).__name__}")
    if donors.ndim != batch.ndim or donors.shape[1:] != batch.shape[1:] or donors.shape[0] == 0:
        raise ValueError(
            f"donors have the images' shape, {wanted} with N at least 1; got {tuple(donors.shape)}; crop or resize them"
        )
    if donors.dtype != batch.dtype or donors.device != batch.device:
        raise ValueError(
            f"donors have the images' dtype and device, {batch.dtype} on {batch.device}; got {donors.dtype} on "
            f"{donors.device}; convert them by donors.to(images)"
        )


def _as_share(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} is a number in [0, 1]; got {value!r}")
    if not 0 <= float(value) <= 1:
        raise ValueError(f"{name} is in [0, 1]; got {value!r}")
    return float(value)


def _as_ratio(ratio: object) -> tuple[float, float]:
    if not isinstance(ratio, (tuple, list)):
        return (_as_share("ratio", ratio),) * 2
    if len(ratio) != 2:
        raise ValueError(f"ratio is a number or a pair (low, high); got {ratio!r}")
    low, high = _as_share("ratio", ratio[0]), _as_share("ratio", ratio[1])
    if low > high:
        raise ValueError(f"ratio is (low, high), but {ratio!r} is reversed; write {(high, low)}")
    return low, high


def _as_group_size(group_size: object) -> tuple[int, int] | None:
    if group_size is None:
        return None
    if not isinstance(group_size, (tuple, list)) or len(group_size) != 2 or not all(map(is_int, group_size)):
        raise TypeError(f"group_size is None or a pair (low, high) of ints, in patches; got {group_size!r}")
    low, high = group_size
    if not 1 <= low <= high:
        raise ValueError(f"group_size is (low, high) with 1 <= low <= high, in patches; got {group_size!r}")
    return int(low), int(high)


def _as_seed(seed: object) -> int | None:
    if seed is None:
        return None
    if not is_int(seed):
        raise TypeError(f"seed is None or an int; got {seed!r}")
    number: int = int(seed)  # type: ignore[call-overload]
    if not -(2**63) <= number < 2**64:
        raise ValueError(f"seed has 64 bits, from -2**63 to 2**64 - 1; got {number}")
    return (number + 2**63) % 2**64 - 2**63
