"""The bits of masks, groups, fills, donors, keys and images, pinned: whatever draws and writes, they stay the same."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
import torch
from torch import Tensor

from gmml_aug import Alien, GroupMask, Noise, Shuffle, Zeros, block_sizes

EVERY: dict[Any, float] = {"zeros": 1, "noise": 2, "alien": 2, "shuffle": 2, Alien("group"): 2, Zeros(3): 1}
PATCH: Any = 4
# For each case the images' shape and dtype, the arguments of GroupMask, and the first eight digits of what comes out.
CASES: dict[str, tuple[tuple[int, ...], torch.dtype, dict[str, Any], str]] = {
    "noise by default": ((24, 3, 56, 56), torch.float32, {}, "310cdcd7"),
    "one image": ((3, 56, 56), torch.float32, {"ratio": 0.5}, "5b0bd547"),
    "clips": ((5, 2, 3, 28, 28), torch.float32, {"fill": {"noise": 1, "alien": 1, "shuffle": 1}}, "9ea22fd1"),
    "clips in place": ((5, 2, 3, 28, 28), torch.float16, {"fill": EVERY, "inplace": True}, "a19574fb"),
    "half precision": ((8, 3, 40, 24), torch.float16, {"fill": Noise(2, 3), "ratio": (0.1, 0.9)}, "d774635a"),
    "bfloat16": ((8, 3, 40, 24), torch.bfloat16, {"fill": {Noise(): 1, Noise(-1, 0.3): 2}}, "b6a73f50"),
    "bytes": ((8, 3, 40, 24), torch.uint8, {"fill": EVERY}, "d24547d2"),
    "bytes in place": ((8, 3, 40, 24), torch.uint8, {"fill": {"noise": 1, "alien": 1}, "inplace": True}, "7bc51132"),
    "double precision": ((8, 3, 40, 24), torch.float64, {"fill": EVERY}, "1264deee"),
    "mixture": ((40, 3, 32, 32), torch.float32, {"fill": EVERY, "ratio": (0, 1), "p": 0.8}, "b6c8120e"),
    "mixture in place": ((40, 3, 32, 32), torch.float32, {"fill": EVERY, "ratio": (0, 1), "inplace": True}, "26ed84ab"),
    "by channel": ((6, 3, 32, 32), torch.float32, {"fill": {Zeros((1, -2, 3)): 1, "zeros": 1}}, "22e1c50f"),
    "per group": ((16, 1, 40, 40), torch.float32, {"fill": Alien("group"), "group_size": (1, 2)}, "1e3a21c0"),
    "all is hidden": ((6, 3, 20, 20), torch.float32, {"fill": {Shuffle(): 1, "alien": 1}, "ratio": 1}, "bbf4f24a"),
    "all is hidden in place": (
        (6, 3, 20, 20),
        torch.float32,
        {"fill": {Shuffle(): 1, "alien": 1}, "ratio": 1, "inplace": True},
        "bbf4f24a",
    ),
    "single patches": ((300, 1, 40, 56), torch.float32, {"group_size": (1, 1), "ratio": 0.75}, "f6f955b5"),
    "large groups inside": (
        (30, 1, 40, 56),
        torch.float32,
        {"group_size": (2, 9), "placement": "inside", "ratio": (0.3, 1)},
        "6a20f296",
    ),
    "nearly all in small groups": ((20, 1, 96, 96), torch.float32, {"group_size": (1, 2), "ratio": 0.97}, "80117706"),
    "of valid patches": ((40, 1, 40, 56), torch.float32, {"valid": 0.4, "ratio": (0.2, 0.9)}, "963bad72"),
    "single valid patches": ((40, 1, 40, 56), torch.float32, {"valid": 0.4, "group_size": (1, 1)}, "803787da"),
    "inverse": ((40, 1, 40, 56), torch.float32, {"invert": True, "ratio": (0, 0.9), "fill": EVERY}, "c09e7e9f"),
    "inverse of valid": (
        (40, 1, 40, 56),
        torch.float32,
        {"invert": True, "valid": 0.8, "group_size": (2, 4)},
        "8f995eca",
    ),
    "a range for each axis": ((40, 1, 40, 56), torch.float32, {"group_size": ((1, 3), (2, 14))}, "97f934eb"),
    "bars": ((40, 1, 40, 56), torch.float32, {"group_size": {(1, "all"): 1, ("all", 2): 2}}, "6fe7c04e"),
    "squares inside": (
        (40, 1, 40, 56),
        torch.float32,
        {"group_size": {(3, 3): 1, (2, 2): 2.5}, "placement": "inside", "valid": 0.9, "invert": True},
        "bbb7c136",
    ),
    "blocks": ((20, 1, 56, 56), torch.float32, {"group_size": block_sizes((14, 14)), "fill": EVERY}, "5a4a3aab"),
    "volumes": (
        (6, 2, 8, 24, 32),
        torch.float32,
        {"patch_size": (2, 4, 4), "fill": EVERY, "ratio": (0, 1)},
        "4f97c3b4",
    ),
    "volumes in place": (
        (6, 2, 8, 24, 32),
        torch.bfloat16,
        {"patch_size": (2, 4, 4), "fill": EVERY, "inplace": True, "group_size": ((1, 2), (1, 4), (2, 3))},
        "b62636b4",
    ),
    "bytes of volumes": (
        (6, 1, 8, 24, 32),
        torch.uint8,
        {"patch_size": (2, 4, 4), "fill": EVERY, "group_size": {("all", 2, 2): 1, (1, 3, 4): 3}, "placement": "inside"},
        "29150b76",
    ),
    "one volume": ((2, 8, 24, 32), torch.float32, {"patch_size": (4, 4, 8), "invert": True, "valid": 0.7}, "96ce5a9c"),
    "small patches": ((4, 3, 12, 18), torch.float32, {"patch_size": (1, 2), "fill": EVERY}, "3c04a3d0"),
}


def contents(*tensors: Tensor) -> bytes:
    return b"".join(t.contiguous().view(-1).view(torch.uint8).numpy().tobytes() for t in tensors if t.numel())


def digest(shape: tuple[int, ...], dtype: torch.dtype, options: dict[str, Any], layout: str) -> str:
    """Draw by the counter and by an index, with donors from the batch and from a pool, and hash all of it."""
    generator = torch.Generator().manual_seed(0)
    images = (torch.rand(shape, generator=generator) * 255).to(dtype)
    volume = isinstance(options.get("patch_size"), tuple) and len(options["patch_size"]) == 3
    single = len(shape) == 3 + volume
    index = torch.arange(len(images)) * 2**40 - 3 if not single else 2**40
    inner = shape[-3 - volume :]
    pool = (torch.rand((3, *inner), generator=torch.Generator().manual_seed(1)) * 255).to(dtype)
    pool = pool if len(shape) < 5 or volume else pool[:, None].expand(3, *shape[1:])
    if layout == "channels_last" and not single and len(shape) == 4 + volume:
        images = images.to(memory_format=torch.channels_last_3d if volume else torch.channels_last)
    elif layout == "strided":
        images = images.repeat_interleave(2, -1)[..., ::2]
    options = {"patch_size": PATCH, "seed": -5, **options}
    share, limited = options.pop("valid", None), {}
    corrupt = GroupMask(**options)
    if share is not None:
        limited["valid"] = torch.rand(corrupt.sample(images, index=index).mask.shape, generator=generator) < share
    pinned = hashlib.sha256()
    for named, donors in ((None, None), (index, None), (index, pool), (None, pool)):
        plan = corrupt.sample(images, index=named, **limited)
        pinned.update(contents(*plan, plan.pool_donor(1000), plan.group_donor(), plan.group_donor(1000)))
        target = images.clone() if corrupt.inplace else images
        pinned.update(contents(corrupt.apply(target, plan, donors=donors).images))
    return pinned.hexdigest()[:8]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
@pytest.mark.parametrize("case", CASES)
def test_the_bits_are_pinned(case: str, layout: str, backend: str) -> None:
    shape, dtype, options, pinned = CASES[case]
    assert digest(shape, dtype, options, layout) == pinned
