"""The fills: what replaces hidden patches, and the weighted choice between them.

A built-in fill is one class, which says its operation, and one entry in :data:`BUILT_IN`.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from .. import rng
from ..plan import MaskPlan
from .operation import Operation, constant, copy, cut, noise, values


@runtime_checkable
class Fill(Protocol):
    """The two methods that :class:`~gmml_aug.GroupMask` asks of a fill."""

    def check(self, images: Tensor, grid: tuple[int, ...], donors: Tensor | None) -> None:
        """Refuse what cannot be filled this way, before anything is drawn or written.

        Args:
            images: ``(B, C, H, W)``, ``(B, T, C, H, W)`` or ``(B, C, D, H, W)``, floating or uint8.
            grid: (height, width) or (depth, height, width) in patches.
            donors: ``(N, ...)`` like the images, or None where donors are to come from the batch.

        Raises:
            ValueError, TypeError: the images do not suit the fill.
        """

    def values(self, images: Tensor, plan: MaskPlan, donors: Tensor) -> Tensor:
        """Return a value for every pixel; those of visible ones are not used.

        Args:
            images: ``(B, C, H, W)``, ``(B, T, C, H, W)`` or ``(B, C, D, H, W)``; not to be written to.
            plan: what was drawn for them; ``plan.group`` has the groups, and ``plan.donor`` counts in ``donors``.
            donors: ``(N, ...)`` like the images: the whole batch or a pool.

        Returns:
            A tensor of the images' dtype and device that broadcasts to their shape.
        """


class BuiltIn:
    """A fill that every backend can write, because it is one of their operations."""

    def check(self, images: Tensor, grid: tuple[int, ...], donors: Tensor | None) -> None:
        """Refuse what cannot be filled this way; see :meth:`Fill.check`."""

    def operation(self, images: Tensor, plan: MaskPlan, donors: Tensor | None) -> Operation:
        """Return what is to be done to the hidden patches of these images.

        Args:
            images: as :meth:`check` takes them.
            plan: what was drawn for them.
            donors: ``(N, ...)`` like the images, or None where they are to come from the batch.
        """
        raise NotImplementedError

    def values(self, images: Tensor, plan: MaskPlan, donors: Tensor) -> Tensor:
        """Return a value for every pixel; see :meth:`Fill.values`."""
        pool = None if donors is images else donors
        return values(self.operation(images, plan, pool), images, pool, plan.mask.shape[1:])


def _check_number(rule: str, given: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{rule}; got {given}")
    try:
        finite = math.isfinite(value)
    except OverflowError:  # a whole number beyond the range of floats
        finite = False
    if not finite:
        raise ValueError(f"{rule}; finite, in the range of floats; got {given}")


def _check_range(images: Tensor, fill: object, largest: float) -> None:
    if images.is_floating_point() and largest > torch.finfo(images.dtype).max:
        raise ValueError(f"{fill} has values beyond the range of {images.dtype}, the images' dtype")


@dataclass(frozen=True)
class Zeros(BuiltIn):
    """A constant: 0, which is the mean of normalised images, unless ``value`` says another.

    Args:
        value: a number, or one per channel.

    Raises:
        TypeError: ``value`` is neither a number nor a sequence of them.
        ValueError: one of them is not finite, or the sequence is empty.
    """

    value: float | Sequence[float] = 0.0

    def __post_init__(self) -> None:
        value = self.value
        if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
            object.__setattr__(self, "value", tuple(value))
        if not self.channels():
            raise ValueError("Zeros takes a number or one per channel; got an empty sequence")
        for number in self.channels():
            _check_number("Zeros takes a number or one per channel", f"value={value!r:.60}", number)

    def channels(self) -> tuple[float, ...]:
        """Return the value of each channel, or one for all."""
        return self.value if isinstance(self.value, tuple) else (self.value,)

    def check(self, images: Tensor, grid: tuple[int, ...], donors: Tensor | None) -> None:
        channels = self.channels()
        if isinstance(self.value, tuple) and len(channels) != images.shape[-len(grid) - 1]:
            raise ValueError(
                f"Zeros has {len(channels)} values, one per channel, but the images have "
                f"{images.shape[-len(grid) - 1]} channels"
            )
        if images.dtype == torch.uint8 and not all(0 <= v <= 255 and v == int(v) for v in channels):
            raise ValueError(f"uint8 images hold whole numbers from 0 to 255, but Zeros has value={self.value!r}")
        _check_range(images, self, max(abs(v) for v in channels))

    def operation(self, images: Tensor, plan: MaskPlan, donors: Tensor | None) -> Operation:
        # Each number reaches the device as a kernel's argument: a tensor made from a list would wait for a copy.
        channels = [images.new_full((1, 1), float(number)) for number in self.channels()]
        return constant(torch.cat(channels, 1).expand(1, images.shape[-plan.mask.ndim]))


@dataclass(frozen=True)
class Noise(BuiltIn):
    """Normal noise for floating images; for uint8 ones, uniform noise over 0..255.

    The values depend on the sample's key, the patch and the pixel's place in it alone, and are drawn at 16 bits: 65,536
    levels, none further than 4.33 standard deviations from the mean.

    Args:
        mean: of the normal distribution, in the images' unit.
        std: its standard deviation, positive.

    Raises:
        TypeError, ValueError: ``mean`` or ``std`` is not a finite number, or ``std`` is not positive.
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        for name, number in (("mean", self.mean), ("std", self.std)):
            _check_number("Noise takes finite numbers", f"{name}={number!r:.60}", number)
        if self.std <= 0:
            raise ValueError(f"Noise takes a positive std; got {self.std!r}; for a constant use Zeros(value=...)")

    def check(self, images: Tensor, grid: tuple[int, ...], donors: Tensor | None) -> None:
        if images.dtype == torch.uint8 and (self.mean, self.std) != (0, 1):
            raise ValueError(
                f"uint8 images are filled with uniform noise over 0..255, which {self} does not describe; "
                "use Noise() for it, or convert the images to floating point first"
            )
        _check_range(images, self, abs(self.mean) + 4.33 * self.std)

    def operation(self, images: Tensor, plan: MaskPlan, donors: Tensor | None) -> Operation:
        return noise(plan.key, self.mean, self.std)


@dataclass(frozen=True)
class Alien(BuiltIn):
    """The pixels at the same place in another image (arXiv 2205.14986, section 3.1).

    Args:
        per: ``"image"``: one other image for all groups, which is the paper's. ``"group"``: each group has a donor of
            its own, so that one image holds several alien concepts.

    Raises:
        ValueError: ``per`` is neither.
    """

    per: Literal["image", "group"] = "image"

    def __post_init__(self) -> None:
        if self.per not in ("image", "group"):
            raise ValueError(f"Alien takes its donors per 'image' or per 'group'; got per={self.per!r}")

    def check(self, images: Tensor, grid: tuple[int, ...], donors: Tensor | None) -> None:
        if images.shape[0] == 1 and donors is None:
            raise ValueError(
                "alien patches come from another image, and this is a batch of one, as a DataLoader's last one may be: "
                "give it drop_last=True or a larger batch; or pass "
                "donors= of shape (N, ...), or use another fill"
            )

    def operation(self, images: Tensor, plan: MaskPlan, donors: Tensor | None) -> Operation:
        pool = None if donors is None else donors.shape[0]
        if self.per == "group":
            donor = plan.group_donor(pool)
        else:
            donor = (plan.donor if pool is None else plan.pool_donor(pool)).view(-1, *(1,) * (plan.mask.ndim - 1))
        return copy(donor, None, plan.mask, pool is not None)


@dataclass(frozen=True)
class Shuffle(BuiltIn):
    """Patches from elsewhere in the same image: each hidden patch becomes a visible one, drawn at random.

    A hidden patch is never a source, so it does not come back in another place; only an image that is hidden whole
    takes its patches from one another.
    """

    def check(self, images: Tensor, grid: tuple[int, ...], donors: Tensor | None) -> None:
        if math.prod(grid) == 1:
            raise ValueError(
                "shuffle needs another patch in the image, and this grid has only one; use a smaller patch_size"
            )

    def operation(self, images: Tensor, plan: MaskPlan, donors: Tensor | None) -> Operation:
        mask = plan.mask.flatten(1)
        patches = mask.shape[1]
        draw, _ = rng.halves(torch.ops.gmml_aug.words(plan.key, rng.SHUFFLE_SLOT, patches))
        visible_first = mask.to(torch.uint8).argsort(dim=1, stable=True)
        visible = patches - mask.sum(1, keepdim=True)
        place = torch.arange(patches, device=mask.device)
        anywhere_else = (place + 1 + rng.below(draw, max(patches - 1, 1))) % patches
        source = torch.where(visible > 0, visible_first.gather(1, rng.below(draw, visible)), anywhere_else)
        return copy(None, source.view(plan.mask.shape), plan.mask, False)


@dataclass(frozen=True)
class Mean(BuiltIn):
    """The mean of each image's visible pixels, by channel: what is left of an image seen from far away.

    Hidden pixels have no share in it; an image that is hidden whole becomes 0. A clip has one mean for all its frames.
    In uint8 images it is rounded to a whole number. A patch is summed in float32 (float64 images in float64): where its
    sum is beyond that range, so is the mean.
    """

    def operation(self, images: Tensor, plan: MaskPlan, donors: Tensor | None) -> Operation:
        axes = plan.mask.ndim - 1
        patches = cut(images, plan.mask.shape[1:])
        dtype = torch.float64 if images.dtype == torch.float64 else torch.float32
        wide = torch.float64 if images.device.type in rng.ARITHMETIC else torch.float32  # MPS has no float64
        sums = patches.sum(tuple(range(-1, -2 * axes, -2)), dtype=dtype).to(wide).flatten(1, -axes - 1)
        hidden, each = plan.mask.to(images.device)[:, None], tuple(range(-axes, 0))
        frames = math.prod(images.shape[1 : -axes - 1])
        total = torch.where(hidden, 0, sums).sum(each).unflatten(1, (frames, images.shape[-axes - 1])).sum(1)
        pixels = frames * math.prod(patches.shape[-1 : -2 * axes : -2])
        mean = total / (hidden.logical_not().sum(each) * pixels).clamp(min=1)
        return constant((mean if images.is_floating_point() else mean.round()).to(images.dtype))


# The registry: names, backends' tests, the command line and its documents read it.
BUILT_IN: dict[str, BuiltIn] = {
    "zeros": Zeros(),
    "noise": Noise(),
    "alien": Alien(),
    "shuffle": Shuffle(),
    "mean": Mean(),
}
TYPES = tuple(type(fill) for fill in BUILT_IN.values())


def _resolve(fill: object) -> Fill:
    if isinstance(fill, str):
        if fill not in BUILT_IN:
            raise ValueError(f"unknown fill {fill!r}; the known ones are {', '.join(map(repr, BUILT_IN))}")
        return BUILT_IN[fill]
    if isinstance(fill, Fill) and not isinstance(fill, type):
        return fill
    hint = ""
    if isinstance(fill, type):
        hint = f"; make an instance, {fill.__name__}()"
    elif isinstance(fill, (list, tuple, set)) and all(isinstance(one, str) for one in fill):
        hint = f"; give each a weight, {{{', '.join(f'{one!r}: 1' for one in fill)}}}"
    elif hasattr(fill, "values") or hasattr(fill, "check"):
        hint = "; a fill of your own has both methods, check() and values(), see gmml_aug.Fill"
    raise TypeError(
        f"a fill is one of {', '.join(map(repr, BUILT_IN))}, an instance such as Noise(), "
        f"or a mapping of these to weights; got {fill!r}{hint}"
    )


def weighted(fill: object) -> tuple[tuple[Fill, ...], tuple[float, ...]]:
    """Return the fills and their weights.

    Args:
        fill: a name, an instance, or a mapping of these to positive weights.

    Raises:
        TypeError: something is neither a fill nor a mapping, or a weight is not a number.
        ValueError: an unknown name (the known ones are listed), an empty mapping, a weight that is not positive.
    """
    if not isinstance(fill, Mapping):
        return (_resolve(fill),), (1.0,)
    weights = as_weights("fill", fill)
    return tuple(map(_resolve, fill)), weights


def as_weights(what: str, given: Mapping[Any, float]) -> tuple[float, ...]:
    """Return the weights of a mapping of fills, or of something else, to them."""
    if not given:
        raise ValueError(f"the mapping of {what}s to weights is empty; give at least one")
    for kind, weight in given.items():
        _check_number(f"a {what}'s weight is a number, positive and finite", f"{weight!r:.60} for {kind!r}", weight)
        if weight <= 0:
            raise ValueError(
                f"a {what}'s weight is positive; got {weight!r} for {kind!r}; leave out what is not wanted"
            )
    weights = tuple(map(float, given.values()))
    if not math.isfinite(sum(weights)):
        raise ValueError(
            f"the weights of the {what}s add up beyond the range of floats; got {weights}; scale them down"
        )
    return weights
