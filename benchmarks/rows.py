"""Every row of the benchmarks, once: what is called, how much one call does, and what it is compared with."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import peers
import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle
from torch.utils.data import DataLoader, Dataset

from gmml_aug import Alien, GroupMask, patch_to_pixel
from gmml_aug.interop.dinov2 import MaskGenerator

Call = Callable[[], object]
Corrupt = Callable[[Tensor], tuple[Tensor, Tensor]]  # images or one image -> the corrupted and their mask
MASK_BATCHES = (1, 16, 256, 4096)
CLONE, ALONE = "clone()", "the step alone"


class Row(NamedTuple):
    """One line of a table.

    Attributes:
        group: what is measured: masks, scaling, transform, image, grids, busy or step.
        case: with which sizes. The rows of one group and case take turns.
        name: whose code, and with which arguments.
        build: returns what is timed. An error says why the row cannot run here.
        amount: masks, patches, batches or steps in one call.
        against: the rows whose speed it is compared with.
        threads: torch's, where they are fixed.
    """

    group: str
    case: str
    name: str
    build: Callable[[], Call]
    amount: int = 1
    against: tuple[str, ...] = ()
    threads: int | None = None


def every(device: str, gmml: str | None = None, dinov2: str | None = None) -> list[Row]:
    """Return all rows; ``gmml`` and ``dinov2`` are checkouts of what is not on PyPI."""
    return [
        *_masks(device, gmml, dinov2),
        *(_generators(dinov2) if device == "cpu" else ()),  # in DataLoader workers, whatever trains
        *_scaling(device),
        *_transform(device, gmml),
        *_grids(device),
        *(_busy(device) if device == "cpu" else ()),
        *_step(device, gmml),
    ]


def _sampler(device: str, *shape: int, **options: Any) -> Callable[[], Tensor]:
    corrupt = GroupMask(peers.PATCH, 0.5, **options)
    if device == "cpu":
        return lambda: corrupt.sample(shape).mask
    images = torch.empty((), device=device).expand(shape)  # tells the device, takes no memory
    return lambda: corrupt.sample(images).mask


def _changing(device: str, *shape: int) -> Callable[[], Tensor]:
    """Return what draws with another ratio at each call, as a schedule sets it."""
    corrupt, ratios = GroupMask(peers.PATCH, 0.5, seed=0), itertools.cycle([0.3 + i / 160 for i in range(64)])
    images = torch.empty((), device=device).expand(shape)

    def draw() -> Tensor:
        corrupt.ratio = next(ratios)
        return corrupt.sample(shape if device == "cpu" else images).mask

    return draw


def _masks(device: str, gmml: str | None, dinov2: str | None) -> Iterator[Row]:
    ours: dict[str, dict[str, Any]] = {
        "gmml_aug, groups": {"seed": 0},
        "gmml_aug, groups, seed=None": {},
        "gmml_aug, group_size=(1, 1)": {"seed": 0, "group_size": (1, 1)},
    }
    theirs: dict[str, Callable[[int, str], Call]] = {
        "lightly random_block_mask": peers.lightly_blocks,
        "lightly random_token_mask": peers.lightly_tokens,
        "DINOv2 MaskingGenerator": functools.partial(peers.dinov2_masks, dinov2),
        "GMML's public code": functools.partial(peers.gmml_masks, gmml),
    }
    blocks, tokens, *public = theirs
    # One image at a time is what a DataLoader's worker draws, and it has one thread; its numbers are the counter's.
    for batch, threads in [(1, None), (1, 1), *((batch, None) for batch in MASK_BATCHES[1:])]:
        case = "one image" if batch == 1 else f"batch {batch}"
        case += ", one thread" if threads else ""
        for name, options in ours.items():
            shape = (3, 224, 224) if batch == 1 else (batch, 3, 224, 224)
            against = (tokens,) if "group_size" in options else (blocks, *public)
            build = functools.partial(_sampler, device, *shape, **options)
            yield Row("masks", case, name, build, batch, against, threads)
        build = functools.partial(_changing, device, *shape)
        yield Row("masks", case, "gmml_aug, groups, another ratio each call", build, batch, (blocks,), threads)
        for name, make in theirs.items():
            if name != public[-1] or batch < MASK_BATCHES[-1]:  # 9 s a call, and no faster than with fewer
                yield Row("masks", case, name, functools.partial(make, batch, device), batch, (), threads)


def _generated(build: Callable[[], Callable[[int], Any]]) -> Call:
    """Return what draws one mask as DINOv2's collate function does: each with another number of patches."""
    generator, number = build(), itertools.cycle(range(20, 99))
    return lambda: torch.BoolTensor(generator(next(number)))


def _generators(dinov2: str | None) -> Iterator[Row]:
    grid = (peers.GRID, peers.GRID)
    theirs = "DINOv2 MaskingGenerator"
    builds: dict[str, Callable[[], Callable[[int], Any]]] = {
        "gmml_aug MaskGenerator": lambda: MaskGenerator(GroupMask(seed=0), grid),
        "gmml_aug MaskGenerator, seed=None": lambda: MaskGenerator(GroupMask(), grid),
        theirs: functools.partial(peers.dinov2_generator, dinov2),
    }
    for name, build in builds.items():
        case = "one image, 20 to 98 patches in turn, one thread"
        yield Row("masks", case, name, functools.partial(_generated, build), 1, (theirs,) if name != theirs else (), 1)


def _scaling(device: str) -> Iterator[Row]:
    batches = [("14 x 14 patches", f"batch {4**power}", 4**power, 14) for power in range(7)]
    grids = [("batch 64", f"{side} x {side} patches", 64, side) for side in (7, 14, 28, 32, 64)]
    for case, name, batch, side in batches + grids:
        pixels = side * peers.PATCH
        build = functools.partial(_sampler, device, batch, 3, pixels, pixels, seed=0)
        yield Row("scaling", case, name, build, batch * side**2)


@functools.cache
def _images(
    device: str, dtype: torch.dtype, batch: int, layout: torch.memory_format = torch.contiguous_format
) -> Tensor:
    images = torch.randn(batch, 3, 224, 224, device=device).to(memory_format=layout)
    return (images * 50 + 128).clamp(0, 255).to(dtype) if dtype == torch.uint8 else images.to(dtype)


def _on_images(
    make: Callable[[Tensor], Call],
    inplace: bool,
    device: str,
    dtype: torch.dtype,
    batch: int,
    layout: torch.memory_format = torch.contiguous_format,
) -> Call:
    images = _images(device, dtype, batch, layout)
    return make(images.clone() if inplace else images)  # each call in place goes on with what the last one left


def _ours(images: Tensor, compiled: bool = False, **options: Any) -> Call:
    corrupt: Callable[[Tensor], object] = GroupMask(ratio=0.5, seed=0, **options)
    if compiled:
        torch._dynamo.config.recompile_limit = 64  # one function for all these modules, and 8 is all that it may have
        corrupt = torch.compile(corrupt, fullgraph=True)
    return functools.partial(corrupt, images)


def _normal(images: Tensor) -> Call:
    return functools.partial(torch.randn, images.numel() // 2, dtype=images.dtype, device=images.device)


def _transform(device: str, gmml: str | None) -> Iterator[Row]:
    erasing = "torchvision v2.RandomErasing, image by image"
    theirs: dict[str, Callable[[Tensor], Call]] = {
        CLONE: lambda images: images.clone,
        "torch.randn of as many values as are hidden": _normal,
        "Kornia RandomErasing": peers.kornia_erasing,
        "Kornia RandomCutMixV2": peers.kornia_cutmix,
        "Kornia PatchMix": peers.kornia_patchmix,
        "torchvision v2.CutMix": peers.torchvision_cutmix,
        erasing: peers.torchvision_erasing,
        f"{erasing}, noise": functools.partial(peers.torchvision_erasing, value="random"),
        f"{erasing}, in place": functools.partial(peers.torchvision_erasing, inplace=True),
        "GMML's public code, noise, image by image": functools.partial(peers.gmml_noise, gmml),
    }
    clone, normal, kornia_erasing, kornia_cutmix, kornia_patchmix, cutmix, _, noise, inplace_erasing, public = theirs
    fills: dict[str, tuple[Any, tuple[str, ...], tuple[str, ...]]] = {  # and what each is compared with, and in place
        "zeros": ("zeros", (kornia_erasing, erasing), (inplace_erasing,)),
        "noise": ("noise", (normal, noise, public), ()),
        "alien": ("alien", (kornia_cutmix, kornia_patchmix, cutmix), ()),
        "alien by group": (Alien("group"), (kornia_patchmix, cutmix), ()),
        "shuffle": ("shuffle", (), ()),
        "noise or alien": ({"noise": 1, "alien": 1}, (), ()),
        "mean": ("mean", (), ()),
    }
    lines: list[tuple[str, Callable[[Tensor], Call], bool, tuple[str, ...]]] = [(clone, theirs.pop(clone), False, ())]
    for name, (fill, *against) in fills.items():
        for inplace, compiled in itertools.product((False, True), (False, True) if device == "cuda" else (False,)):
            options = {"patch_size": peers.PATCH, "fill": fill, "inplace": inplace, "compiled": compiled}
            ours = functools.partial(_ours, **options)
            title = f"gmml_aug, {name}{', in place' * inplace}{', compiled' * compiled}"
            lines.append((title, ours, inplace, against[inplace]))
    lines += [(name, make, name == inplace_erasing, ()) for name, make in theirs.items()]

    batch, dtypes = (256, (torch.float32, torch.bfloat16)) if device == "cuda" else (64, (torch.float32,))
    size = f"{batch} x 3 x 224 x 224"
    for dtype, (name, make, inplace, beside) in itertools.product(dtypes, lines):
        build = functools.partial(_on_images, make, inplace, device, dtype, batch)
        yield Row("transform", f"{size} {str(dtype).removeprefix('torch.')}", name, build, against=beside)
    if device == "cuda":
        return
    own = [line for line in lines if line[0] == clone or line[0].startswith("gmml_aug")]
    for case, dtype, layout in (
        ("float32, channels_last", torch.float32, torch.channels_last),
        ("bfloat16", torch.bfloat16, torch.contiguous_format),
        ("uint8", torch.uint8, torch.contiguous_format),
    ):
        for name, make, inplace, _ in own:
            build = functools.partial(_on_images, make, inplace, device, dtype, batch, layout)
            yield Row("transform", f"{size} {case}", name, build)
    # In the worker of a DataLoader, which has one thread.
    ours_alone = [f"gmml_aug, {fill}{place}" for fill in ("zeros", "noise") for place in ("", ", in place")]
    for name, make, inplace, beside in lines:
        if name in (clone, *ours_alone, erasing, noise, inplace_erasing):
            build = functools.partial(_on_images, functools.partial(_on_one, make), inplace, device, torch.float32, 1)
            known = tuple(other for other in beside if other in (erasing, noise, inplace_erasing))
            yield Row("image", "3 x 224 x 224 float32, one thread", name, build, 1, known, 1)


def _on_one(make: Callable[[Tensor], Call], images: Tensor) -> Call:
    return make(images[0])


def _grids(device: str) -> Iterator[Row]:
    """Volumes and spectrograms, half of each hidden: the whole transform."""
    fills: tuple[tuple[str, Any], ...] = (("zeros", 0.0), ("noise", (-1.0, 1.0)))
    for side in (16, 8):
        case, volumes = f"2 x 1 x 96 x 96 x 96 float32, patches of {side}", (2, 1, 96, 96, 96)
        yield Row("grids", case, CLONE, functools.partial(_on_random, volumes, device, lambda images: images.clone))
        for fill, value in fills:
            theirs = f"MONAI RandCoarseDropout, volume by volume, in place, {fill}"
            ours = functools.partial(_ours, patch_size=(side, side, side), fill=fill)
            build = functools.partial(_on_random, volumes, device, ours)
            yield Row("grids", case, f"gmml_aug, {fill}", build, 1, (theirs,))
            peer = functools.partial(peers.monai_dropout, side=side, value=value)
            yield Row("grids", case, theirs, functools.partial(_on_random, volumes, device, peer))
    theirs, case = "torchaudio TimeMasking and FrequencyMasking", "64 x 1 x 128 x 1024 float32"
    on_spectrograms = functools.partial(_on_random, (64, 1, 128, 1024), device)
    yield Row("grids", case, CLONE, functools.partial(on_spectrograms, lambda images: images.clone))
    for patch, thick, name in ((16, 1, "bars of 16 bins or frames"), (1, 16, "the same, in patches of 1")):
        sizes = {(thick, "all"): 1, ("all", thick): 1}
        ours = functools.partial(_ours, patch_size=patch, fill="zeros", group_size=sizes)
        yield Row("grids", case, f"gmml_aug, {name}, zeros", functools.partial(on_spectrograms, ours), 1, (theirs,))
    yield Row("grids", case, theirs, functools.partial(on_spectrograms, peers.torchaudio_bars))


def _on_random(shape: tuple[int, ...], device: str, make: Callable[[Tensor], Call]) -> Call:
    return make(torch.randn(shape, device=device))


def _busy(device: str) -> Iterator[Row]:
    """The same calls while one process spins on each core: fewer rows, in one table with their clone()."""
    case = "one more process on each core"
    wanted = [f"gmml_aug, {fill}{place}" for fill in ("zeros", "noise", "alien") for place in ("", ", in place")]
    for row in (*_masks(device, None, None), *_transform(device, None)):
        masks = row.case == "batch 256" and row.name in ("gmml_aug, groups", "lightly random_block_mask")
        images = row.case.endswith("224 float32") and row.name in (CLONE, *wanted)
        if masks or images:
            yield row._replace(group="busy", case=case, amount=1, against=())


class _InMemory(Dataset[tuple[Tensor, ...]]):
    """Images as they are, or each with what a DataLoader's worker makes of it: as many as are asked for."""

    def __init__(self, corrupt: Corrupt | None) -> None:
        self.images, self.corrupt = _images("cpu", torch.float32, 256), corrupt

    def __len__(self) -> int:
        return 2**40

    def __getitem__(self, i: int) -> tuple[Tensor, ...]:
        image = self.images[i % len(self.images)]
        return (image,) if self.corrupt is None else (image, *self.corrupt(image.clone()))


class Training:
    """Calling it trains for some steps, the waiting for data included. Before each turn the loader is to ``restart``.

    Otherwise its workers would use the other rows' turns to work ahead.
    """

    steps = 10

    def __init__(self, device: str, corrupt_batch: Corrupt, corrupt_image: Corrupt | None = None) -> None:
        import timm

        self.device, self.corrupt = device, corrupt_batch
        on_gpu = device == "cuda"
        size: dict[str, Any] = {} if on_gpu else {"embed_dim": 96, "depth": 2, "num_heads": 3}
        encoder: Any = timm.create_model("vit_small_patch16_224", num_classes=0, **size)
        self.encoder = encoder.to(device)
        self.decoder = nn.Conv2d(encoder.embed_dim, 3 * peers.PATCH**2, 1).to(device)
        self.optimizer = torch.optim.AdamW([*self.encoder.parameters(), *self.decoder.parameters()])
        self.loader = DataLoader(
            _InMemory(corrupt_image),
            batch_size=256 if on_gpu else 32,
            num_workers=8 if on_gpu else 2,
            persistent_workers=True,
            pin_memory=on_gpu,
        )

    def restart(self) -> None:
        self.batches = iter(self.loader)
        for _ in range(2 * self.loader.num_workers):  # until the queue of batches is as full as it stays
            self._step()

    def __call__(self) -> None:
        for _ in range(self.steps):
            self._step()

    def _step(self) -> None:
        clean, *corrupted = (part.to(self.device, non_blocking=True) for part in next(self.batches))
        images, mask = corrupted or self.corrupt(clean)
        hidden = mask if mask.ndim == 4 else patch_to_pixel(mask, peers.PATCH)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"):
            tokens = self.encoder.forward_features(images)[:, self.encoder.num_prefix_tokens :]
            grid = tokens.transpose(1, 2).unflatten(2, (peers.GRID, peers.GRID))
            reconstruction = pixel_shuffle(self.decoder(grid), peers.PATCH)
        loss = ((reconstruction - clean).abs() * hidden).sum() / hidden.sum()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def _clean(images: Tensor) -> tuple[Tensor, Tensor]:
    return images, torch.ones(len(images), peers.GRID, peers.GRID, dtype=torch.bool, device=images.device)


def _step(device: str, gmml: str | None) -> Iterator[Row]:
    def in_workers(make: Callable[[], Corrupt]) -> Training:
        return Training(device, _clean, make())

    per_image: dict[str, Callable[[], Corrupt]] = {
        "in the workers, image by image: lightly random_block_mask, noise by torch": lambda: peers.lightly_image,
        "in the workers, image by image: GMML's public code": functools.partial(peers.gmml_image, gmml),
    }
    case = "ViT-S/16, batch 256, bfloat16, 8 workers" if device == "cuda" else "tiny ViT (96 x 2), batch 32, 2 workers"
    yield Row("step", case, ALONE, functools.partial(Training, device, _clean), Training.steps)
    for fill in ("noise", "alien"):
        build = functools.partial(Training, device, GroupMask(peers.PATCH, 0.5, fill, seed=0))
        yield Row("step", case, f"gmml_aug, {fill}, in the step", build, Training.steps, tuple(per_image))
    for name, make in per_image.items():
        yield Row("step", case, name, functools.partial(in_workers, make), Training.steps)
