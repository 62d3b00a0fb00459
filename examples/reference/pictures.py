"""Pictures of what a network sees and makes: reconstructions, each block decoded, the last block's attention."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from timm.utils.attention_extract import AttentionExtract
from torch import Tensor, nn

from gmml_aug import GroupMask, patch_to_pixel

from .config import Config
from .data.sources import Data, Raw, Source
from .model import Autoencoder
from .rivals import normalised_per_patch, with_contrast_of
from .views import Views


def held_out(data: Data) -> tuple[Source, str]:
    """Return the images to look at, and what they are called: training images where too few are held out for donors."""
    if data.test is None or len(data.test) < 3:
        return data.train, "training images"
    return data.test, "held-out images"


def names(data: Data, source: Source, raw: Raw) -> list[str]:
    """Return each image's class, or its number where nothing is labelled."""
    numbers = (raw.number % len(source)).tolist()
    if source.labels is None:
        return [f"image {number}" for number in numbers]
    return [textwrap.fill(data.classes[int(source.labels[number])], 12) for number in numbers]


def show(axis: Axes, picture: Tensor, title: str = "") -> None:
    """Draw an image ``(C, H, W)`` in [0, 1]."""
    axis.imshow(picture.permute(1, 2, 0).squeeze(-1).cpu().numpy(), cmap="gray", vmin=0, vmax=1)
    axis.set(xticks=[], yticks=[])
    axis.set_title(title, fontsize=8)


def label(axis: Axes, text: str) -> None:
    axis.set_ylabel(text, rotation=0, ha="right", va="center", fontsize=9)


def outline(axis: Axes, chosen: Tensor, patch_size: Sequence[int], color: str) -> None:
    """Draw a line around the chosen patches ``(gh, gw)`` of a picture whose patches have this size."""
    height, width = patch_size
    inside = nn.functional.pad(chosen.cpu(), (1, 1, 1, 1))
    style: dict[str, Any] = {"colors": color, "linewidth": 1, "clip_on": False, "zorder": 3}
    row, column = (inside[1:-1, 1:] != inside[1:-1, :-1]).nonzero().T.numpy()
    axis.vlines(column * width - 0.5, row * height - 0.5, (row + 1) * height - 0.5, **style)
    row, column = (inside[1:, 1:-1] != inside[:-1, 1:-1]).nonzero().T.numpy()
    axis.hlines(row * height - 0.5, column * width - 0.5, (column + 1) * width - 0.5, **style)


@torch.no_grad()
def draw_reconstructions(
    config: Config, model: nn.Module, data: Data, corrupt: GroupMask, path: Path, accelerator: Accelerator
) -> None:
    """Draw a dozen held-out images, how they were corrupted, what the model made of them, and the masks."""
    (source, what), views = held_out(data), Views(data)
    count = min(12, len(source))
    chosen = (torch.arange(count) * (len(source) // count) + (corrupt.seed or 0)) % len(source)
    raw = next(source.batches([chosen]))
    images = views.plain(raw.images)
    plan = corrupt.sample(images, index=raw.number)
    corrupted, mask = corrupt.apply(images, plan)
    hidden = patch_to_pixel(mask, corrupt.patch_size)
    training = model.training
    model.eval()
    made = model(corrupted)
    model.train(training)
    how = "visible patches\nas they were"
    if config.targets == "patches":
        made = with_contrast_of(images, made, config.patch_size)
        how += "; mean and\nspread of each hidden\none are the original's"
    filled = torch.where(hidden, made, images)
    if not accelerator.is_main_process:
        return
    rows = {
        "original": views.shown(images),
        "corrupted:\nall that the\nnetwork sees": views.shown(corrupted),
        f"reconstruction\n({how})": views.shown(filled),
        "mask\n(white: hidden)": hidden.float(),
    }
    fills = [type(corrupt.fills[number]).__name__.lower() for number in plan.fill.tolist()]
    titles = [f"{name}\n({fill})" for name, fill in zip(names(data, source, raw), fills, strict=True)]
    figure = Figure(figsize=(1.1 * count + 1.4, 1.15 * len(rows) + 0.8), layout="compressed")
    figure.suptitle(
        f"{what.capitalize()} of {data.name}; in brackets: what fills the hidden patches (alien: another image)",
        fontsize=10,
    )
    axes = figure.subplots(len(rows), count, squeeze=False)
    for row, (name, pictures) in enumerate(rows.items()):
        for column, picture in enumerate(pictures):
            show(axes[row, column], picture, "" if row else titles[column])
        label(axes[row, 0], name)
    figure.savefig(path, dpi=130)


def decoded(model: Autoencoder, corrupted: Tensor) -> list[Tensor]:
    """Return the images decoded from each block's output alone, first to last."""
    blocks = range(1, len(model.encoder.blocks) + 1)
    return [model.decode(model.encoder.norm(tokens), corrupted) for tokens in model.outputs(corrupted, list(blocks))]


@torch.no_grad()
def draw_blocks(config: Config, model: Autoencoder, data: Data, alien: GroupMask, path: Path) -> None:
    """Draw what each block's output decodes to where aliens were put in, and how near that is to both images.

    With normalised targets all patches are shown and compared as they were learned, of mean 0 and spread 1.
    """
    (source, what), views, depth = held_out(data), Views(data), len(model.encoder.blocks)
    generator = torch.Generator().manual_seed(alien.seed or 0)
    chosen = torch.randperm(len(source), generator=generator)[:256]
    distances: list[Tensor] = []  # (3 references, depth + 2 stages, images)
    figure = Figure(figsize=(1.05 * (depth + 4) + 1.2, 11.2), layout="constrained")
    upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=(7.2, 4)).flat
    for raw in source.batches(chosen.tensor_split(-(-len(chosen) // 32))):
        images = views.plain(raw.images)
        plan = alien.sample(images, index=raw.number)
        corrupted, mask = alien.apply(images, plan)
        before = images, corrupted
        if config.targets == "patches":
            before = normalised_per_patch(images, config.patch_size), normalised_per_patch(corrupted, config.patch_size)
        shown, *stages = (views.shown(each) for each in (*before, *decoded(model, corrupted), model(corrupted)))
        own = torch.arange(len(images), device=images.device)
        third = (plan.donor + 1) % len(images)  # an image that the network sees nothing of
        third = torch.where(third == own, (plan.donor + 2) % len(images), third)
        hidden = patch_to_pixel(mask, alien.patch_size)
        pixels = hidden.sum((1, 2, 3)) * data.channels
        references = (shown[plan.donor], shown, shown[third])
        far = [[((s - r).abs() * hidden).sum((1, 2, 3)) / pixels for s in stages] for r in references]
        distances.append(torch.stack([torch.stack(row) for row in far]).cpu())
        if len(distances) == 1:
            count = min(6, len(images))
            axes = upper.subplots(count, depth + 4, squeeze=False)
            titles = [f"block {b}" + "\n(fused)" * (b in model.blocks) for b in range(1, depth + 1)]
            titles = ["original", "donor of\nalien patches", "corrupted\ninput", *titles, "output of the\nnetwork"]
            for i, name in enumerate(names(data, source, raw)[:count]):
                pictures = [shown[i], shown[plan.donor[i]], *(stage[i] for stage in stages)]
                for column, picture in enumerate(pictures):
                    show(axes[i, column], picture, "" if i else titles[column])
                    if column:
                        outline(axes[i, column], mask[i], alien.patch_size, "red")
                label(axes[i, 0], name)
    upper.suptitle(
        f"Each block's output, decoded, visible patches too: {what} of {data.name}.\n"
        "Inside the red lines are the donor's patches; the network sees the corrupted input alone."
        + "\nEach patch has mean 0 and spread 1, as the network learned it."
        * (config.targets == "patches"),
        fontsize=11,
    )
    far_all = torch.cat(distances, 2)
    mean, error = far_all.mean(2).numpy(), (far_all.std(2) / far_all.shape[2] ** 0.5).numpy()
    axis = lower.subplots()
    lines = {
        "to the donor's pixels (alien)": ("tab:red", "o"),
        "to the image's own pixels (native), which were hidden": ("tab:blue", "s"),
        "to a third image's pixels (chance: the network sees nothing of it)": ("tab:gray", "^"),
    }
    for (name, (color, marker)), middle, spread in zip(lines.items(), mean, error, strict=True):
        axis.errorbar(range(depth + 1), middle[:-1], 2 * spread[:-1], color=color, marker=marker, label=name, capsize=2)
        axis.errorbar([depth + 1], middle[-1:], 2 * spread[-1:], color=color, marker=marker, capsize=2)
    axis.set_xticks(range(depth + 2), ["corrupted\ninput", *(f"block {b + 1}" for b in range(depth)), "output"])
    axis.set_ylabel("mean absolute difference\n(of what is shown, from 0 to 1)")
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=9)
    fused = ", ".join(map(str, model.blocks))
    lower.suptitle(
        f"Hidden patches of {far_all.shape[2]} {what}: how far is what is decoded? (bars: two standard errors)",
        fontsize=11,
    )
    lower.supxlabel(
        "Red within the bars of grey: no more of the donor is seen than by chance. "
        "Blue below grey: native content is back.\n"
        f"The decoder was trained on the fusion of the blocks {fused} alone. "
        "From others it shows what it can read, which may be less than what is there.",
        fontsize=9,
    )
    figure.savefig(path, dpi=130)


@torch.no_grad()
def attention(model: Autoencoder, images: Tensor) -> Tensor:
    """Return the last block's attention ``(B, heads, tokens, tokens)``, from row to column; each row sums to one."""
    last = f"blocks.{len(model.encoder.blocks) - 1}.attn"
    model.encoder.get_submodule(last).fused_attn = False  # type: ignore[assignment]  # which would not keep the weights
    weights: Tensor = AttentionExtract(model.encoder, [f"{last}.attn_drop"], method="hook")(images)[f"{last}.attn_drop"]
    return weights


def draw_attention(model: Autoencoder, data: Data, patches: list[tuple[int, int]], seed: int, path: Path) -> None:
    """Draw where the last block looks from chosen patches (row, column), of a few images as they are."""
    (source, what), views, prefix = held_out(data), Views(data), model.encoder.num_prefix_tokens
    height, width = grid = model.encoder.patch_embed.grid_size
    chosen = torch.randperm(len(source), generator=torch.Generator().manual_seed(seed))[:4]
    raw = next(source.batches([chosen]))
    images = views.plain(raw.images)
    weights = attention(model, images)
    heads, patch_size = weights.shape[1], model.encoder.patch_embed.patch_size
    among = weights.mean(1)[:, prefix:, prefix:].unflatten(1, grid).unflatten(3, grid).cpu()
    maps = 100 * torch.stack([among[:, row, column] for row, column in patches], 1)  # (B, patches, gh, gw), percent
    around = [withStroke(linewidth=2, foreground="black")]
    figure = Figure(figsize=(1.7 * (len(patches) + 1) + 1.8, 1.7 * len(images) + 1.4), layout="compressed")
    axes = figure.subplots(len(images), len(patches) + 1, squeeze=False)
    for i, name in enumerate(names(data, source, raw)):
        show(axes[i, 0], views.shown(images)[i], "" if i else "image, and the\nchosen patches")
        label(axes[i, 0], name)
        for place, (row, column) in enumerate(patches):
            here = torch.zeros(grid, dtype=torch.bool)
            here[row, column] = True
            outline(axes[i, 0], here, patch_size, "cyan")
            corner = (column * patch_size[1] - 0.5, row * patch_size[0] - 0.5)
            axes[i, 0].text(*corner, place + 1, color="cyan", ha="right", va="bottom", fontsize=8, path_effects=around)
            axis = axes[i, place + 1]
            largest = float(maps[i, place].max())
            axis.imshow(maps[i, place].numpy(), cmap="magma", vmin=0, vmax=largest)
            axis.set(xticks=[], yticks=[])
            axis.set_xlabel(f"up to {largest:.3g} %", fontsize=8)
            axis.set_title("" if i else f"from patch {place + 1}\n(row {row + 1}, column {column + 1})", fontsize=8)
            outline(axis, here, (1, 1), "cyan")
    evenly = f"spread evenly, each token would get {100 / (prefix + height * width):.2g} %"
    figure.suptitle(
        f"Where the last block looks from the outlined patch, averaged over {heads} heads;\n"
        f"uncorrupted {what} of {data.name}" + f"; {prefix} class or register tokens left out" * (prefix > 0) + ".\n"
        f"Colours go from 0, black, to each panel's largest, which is under it; {evenly}",
        fontsize=10,
    )
    figure.savefig(path, dpi=130)
