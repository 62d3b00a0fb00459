"""The figures of any mask: how much it hides, in which connected components, and how evenly over the grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Description(NamedTuple):
    """The figures of masks, from :func:`describe`; ``print`` shows them as a few lines.

    For one mask ``(gh, gw)`` the first three fields lack the dimension B.

    Attributes:
        share: ``(B,)`` float32, the share of each image's patches that is hidden.
        components: ``(B,)`` int64, how many connected components the hidden patches of each image form.
        sizes: ``(B, n)`` int64, the patches in each component, largest first; an image with fewer than n components
            has zeros at the end. ``sizes[sizes > 0]`` are all of them, ``sizes[i, : components[i]]`` those of one.
        frequency: ``(gh, gw)`` or ``(gd, gh, gw)`` float32, the share of the B masks that hides each patch.
        most_to_least: ``()`` float32, the frequency of the most often hidden patch over that of the least often hidden
            one: 1 is even, and inf means that some patch is never hidden. It tells something for many masks only:
            thousands, since chance alone makes it large for a few.
    """

    share: Tensor
    components: Tensor
    sizes: Tensor
    frequency: Tensor
    most_to_least: Tensor

    def __str__(self) -> str:
        share, components = self.share.reshape(-1), self.components.reshape(-1)
        sizes = self.sizes[self.sizes > 0]
        grid = " x ".join(map(str, self.frequency.shape))
        lines = [
            f"masks       {len(share)}, of {grid} patches",
            f"hidden      {_spread(share * 100, '%')}",
            f"components  {_spread(components, 'in a mask')}",
            f"sizes       {_spread(sizes, 'patches') if len(sizes) else 'none'}",
        ]
        if len(share) >= 1000:  # with fewer, chance decides
            lines.append(f"evenness    {self.most_to_least:.3g} to 1, the most often hidden patch to the least")
        return "\n".join(lines)


def _spread(values: Tensor, unit: str) -> str:
    low, mean, high = float(values.min()), float(values.double().mean()), float(values.max())
    return f"{low:.4g} {unit}" if low == high else f"{low:.4g} to {high:.4g} {unit}, {mean:.4g} on average"


def _as_masks(mask: Any) -> tuple[Tensor, bool]:
    """Return ``(B, gh, gw)`` bool, and whether the dimension B was added."""
    if not isinstance(mask, Tensor):
        kind = type(mask).__name__
        try:
            if isinstance(mask, Sequence):  # of arrays, as generators of one mask at a time fill a list
                mask = [one.tolist() if hasattr(one, "tolist") else one for one in mask]
            elif hasattr(mask, "copy"):
                mask = mask.copy()  # of arrays torch takes no flipped ones
            mask = torch.tensor(mask)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(
                f"a mask is a tensor, an array or nested lists of True and False, all rows of one length; "
                f"got {kind}: {error}"
            ) from None
    if mask.ndim not in (2, 3, 4):
        raise ValueError(
            f"masks are (B, gh, gw), (gh, gw) for one, or (B, gd, gh, gw) of volumes; got {tuple(mask.shape)}; "
            "reshape them, flat ones (B, patches) for instance by mask.reshape(-1, gh, gw)"
        )
    if mask.numel() == 0:
        raise ValueError(f"there is nothing to describe in a mask of {tuple(mask.shape)}")
    hidden = mask != 0
    if mask.dtype != torch.bool and not bool(((mask == 1) == hidden).all()):
        other = mask[hidden & (mask != 1)][0].item()
        raise ValueError(
            f"a mask is bool, or 1 where hidden and 0 elsewhere; got {other}; compare first, as in mask > 0"
        )
    return (hidden[None], True) if mask.ndim == 2 else (hidden, False)


def _labels(hidden: Tensor) -> Tensor:
    """Return for each hidden patch the lowest row-major place of its component: ``(B, patches)`` int64.

    Visible patches have the number of patches instead. Each patch points to a place of its component, at first its own.
    In every round the places that are pointed to take over the lowest end that a neighbour has found, and all ways are
    halved, so that the rounds grow with the logarithm of the longest (FastSV: Zhang, Azad and Hu, arXiv 1910.05971).
    """
    patches = hidden[0].numel()
    place = torch.arange(patches + 1, device=hidden.device)  # one more, to which all visible patches point
    points = torch.where(torch.nn.functional.pad(hidden.flatten(1), (0, 1)), place, patches)
    end = points
    while True:
        low = end[:, :-1].reshape(hidden.shape)
        found = low.clone()
        for axis in range(1, hidden.ndim):
            there, here = low.transpose(1, axis), found.transpose(1, axis)
            torch.minimum(here[:, 1:], there[:, :-1], out=here[:, 1:])
            torch.minimum(here[:, :-1], there[:, 1:], out=here[:, :-1])
        lowest = torch.where(hidden, found, patches).flatten(1)
        before = points[:, :-1]
        points = points.scatter_reduce(1, before, lowest, "amin")
        points[:, :-1] = torch.minimum(torch.minimum(points[:, :-1], lowest), end[:, :-1])
        further = points.gather(1, points)
        if torch.equal(further, end):
            return end[:, :-1]
        end = further


def describe(mask: Any) -> Description:
    """Return the figures of masks, of this or any other library; on an accelerator this waits for it.

    Patches are connected where they share a side, so groups that touch count as one component.

    Args:
        mask: ``(B, gh, gw)``, ``(gh, gw)`` for one, or ``(B, gd, gh, gw)`` of volumes; True or 1 = hidden. A tensor on
            any device, a NumPy array, nested lists, or a list of arrays of one size. Flat masks ``(B, patches)``, as
            Hugging Face's ``bool_masked_pos``, look like one large mask: pass ``mask.reshape(-1, gh, gw)``. The mask of
            one volume, ``(gd, gh, gw)``, looks like a batch of images: pass ``mask[None]``. Of a mask that says what
            is kept, pass ``~mask``.

    Returns:
        :class:`Description`, its tensors on the mask's device.

    Raises:
        TypeError: the mask is no tensor, array or nested sequence of numbers.
        ValueError: it has other dimensions, no patches, or values other than 0 and 1.

    Example:
        >>> figures = describe([[1, 1, 0], [0, 0, 0], [0, 0, 1]])
        >>> figures.components, figures.sizes
        (tensor(2), tensor([2, 1]))
    """
    hidden, single = _as_masks(mask)
    patches = hidden[0].numel()
    label = _labels(hidden)
    counts = torch.zeros(len(hidden), patches + 1, dtype=torch.int64, device=hidden.device)
    counts = counts.scatter_add_(1, label, torch.ones_like(label))[:, :patches]
    components = (counts > 0).sum(1)
    sizes = counts.topk(int(components.max()), dim=1).values
    times = hidden.sum(0)
    even = bool(times.min() == times.max())  # also where no mask hides anything: 0 / 0
    share = counts.sum(1).to(torch.float32) / patches
    return Description(
        share=share[0] if single else share,
        components=components[0] if single else components,
        sizes=sizes[0] if single else sizes,
        frequency=times.to(torch.float32) / len(hidden),
        most_to_least=torch.ones_like(share[0]) if even else times.max().to(torch.float32) / times.min(),
    )
