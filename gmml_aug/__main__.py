"""The command line: ``preview`` draws photos under the arguments of GroupMask, ``info`` says what works here."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import itertools
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from . import __version__, filling, sampling
from .describe import describe
from .filling.fills import BUILT_IN
from .transform import GroupMask

_FILLS = tuple(BUILT_IN)
_PACKAGES = "torch", "numba", "triton", "numpy", "torchvision", "kornia", "timm", "lightly", "transformers", "lightning"
_MEAN, _STD = (torch.tensor(of).view(3, 1, 1) for of in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))  # ImageNet's


def main(words: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        words: the arguments; those of the process where None.

    Raises:
        SystemExit: an argument is wrong, with status 2 and a line on stderr; or help was asked for.
    """
    parser = argparse.ArgumentParser("python -m gmml_aug", description="Group masking for PyTorch.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    preview = commands.add_parser(
        "preview",
        usage="python -m gmml_aug preview PHOTO [PHOTO ...] [options]",
        help="draw photos, and what GroupMask makes of them, on one sheet",
        description="Draw photos, and what GroupMask makes of them, on one sheet, and print what is hidden. "
        "All fills of a photo hide the same patches.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    preview.set_defaults(run=_preview, error=preview.error)
    add = preview.add_argument
    add("photos", nargs="+", metavar="PHOTO", type=Path, help="files that Pillow reads: JPEG, PNG, WebP and more")
    add("--image-size", type=int, default=224, metavar="PIXELS", help="photos are scaled and cropped to this square")
    add("--patch-size", type=int, nargs="+", default=[16], metavar="PIXELS", help="one number, or height and width")
    add("--ratio", type=float, nargs="+", default=[0.4, 0.7], metavar="SHARE", help="hidden: one number, or low high")
    add("--fill", nargs="+", choices=_FILLS, default=["noise"], metavar="FILL", help=f"of {', '.join(_FILLS)}")
    add(
        "--group-size",
        type=int,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="of a group's sides, in patches; None is 1 up to 30 %% of the grid's",
    )
    add("--placement", choices=("uniform", "inside"), default="uniform", help="may groups hang over the border?")
    add("--seed", type=int, default=0, help="another one draws other masks and fills")
    add("-o", "--output", type=Path, default=Path("sheet.png"), metavar="FILE", help="the sheet, as PNG, JPEG or PDF")
    info = commands.add_parser(
        "info",
        help="say which versions, devices and backends are here, and time one call: for a report of a bug",
        description="Say which versions, devices and backends are here, and time one call: for a report of a bug.",
    )
    info.set_defaults(run=_info)
    arguments = parser.parse_args(words)
    if "run" in arguments:
        arguments.run(arguments)
    else:
        parser.print_help()


def _preview(arguments: argparse.Namespace) -> None:
    photos, output, fills = arguments.photos, arguments.output, arguments.fill
    settings: dict[str, Any] = {
        "patch_size": _one_or_pair(arguments.patch_size),
        "ratio": _one_or_pair(arguments.ratio),
        "group_size": arguments.group_size and tuple(arguments.group_size),
        "placement": arguments.placement,
        "seed": arguments.seed,
    }
    if len(arguments.patch_size) > 2:
        arguments.error("--patch-size is one number of pixels, or a pair (height, width)")
    if len(set(fills)) < len(fills):
        arguments.error(f"--fill {' '.join(fills)} names one fill twice")
    if "alien" in fills and len(photos) == 1:
        arguments.error("--fill alien takes its patches from another photo; give two photos or more, or another fill")
    if not output.absolute().parent.is_dir():
        arguments.error(f"--output {output}: there is no folder {output.parent}; make it first")
    if output.exists() and any(photo.exists() and output.samefile(photo) for photo in photos):
        arguments.error(f"--output {output} is one of the photos; name another file")
    try:
        from .preview import CAPTION, draw, load
    except ModuleNotFoundError as missing:
        arguments.error(f"preview needs {missing.name}, which is not installed: pip install matplotlib")

    try:
        corrupt = {fill: GroupMask(fill=fill, **settings) for fill in fills}
        shape = (len(photos), 3, arguments.image_size, arguments.image_size)
        plan = corrupt[fills[0]].sample(shape, index=torch.arange(len(photos)))  # one for all fills
        images = torch.stack([load(photo, arguments.image_size) for photo in photos])
        # Filled as in training, where images are normalised; noise would look different without.
        normalised = (images - _MEAN) / _STD
        filled = {name: each.apply(normalised, plan).images for name, each in corrupt.items()}
        figures = describe(plan.mask)
        shares = [f"{share:.1%}".replace("%", " %") for share in figures.share.tolist()]
        groups = [f"{n} group{'s' * (n != 1)}" for n in figures.components.tolist()]
        captions = [f"{share} hidden, {number}" for share, number in zip(shares, groups, strict=True)]
        # Not to be broken within a pair.
        given = ", ".join(f"{name}={value!r}".replace(", ", ",\N{NO-BREAK SPACE}") for name, value in settings.items())
        draw(
            {"photo": images} | {name: (each * _STD + _MEAN).clamp(0, 1) for name, each in filled.items()},
            [[_shortened(photo.name, CAPTION) for photo in photos]] + [captions] * len(fills),
            f"GroupMask({given}) on {arguments.image_size} x {arguments.image_size} pixels",
            output,
            output.suffix[1:] or "png",
        )
    except (OSError, TypeError, ValueError) as error:
        arguments.error(str(error))

    table = [("photo", "hidden", "connected groups", "patches in each")]
    for photo, share, sizes in zip(photos, shares, figures.sizes, strict=True):
        in_each = [int(size) for size in sizes if size]
        table.append((_shortened(photo.name, 40), share, str(len(in_each)), _counted(in_each)))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for name, share, number, patches in table:
        print(f"{name:<{widths[0]}}  {share:>{widths[1]}}  {number:>{widths[2]}}  {patches}")
    print(f"Patches that share a side are connected; all fills of a photo hide the same. Drew {output}.")


def _info(arguments: argparse.Namespace) -> None:
    versions = {"gmml_aug": __version__, "python": platform.python_version(), "system": platform.platform()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "?" if importlib.util.find_spec(package) else "not installed"
    for name, version in versions.items():
        print(f"{name:<13} {version}")
    devices = ["cpu"]
    print(f"{'cpu':<13} {os.cpu_count()} cores, torch uses {torch.get_num_threads()} of them")
    if torch.cuda.is_available():
        devices.append("cuda")
        major, minor = torch.cuda.get_device_capability()
        print(f"{'cuda':<13} {torch.cuda.get_device_name()}, compute capability {major}.{minor}")
    for name, there in (("mps", torch.backends.mps.is_available()), ("xpu", torch.xpu.is_available())):
        if there:
            devices.append(name)
            print(f"{name:<13} is there")
    for device in devices:
        for name, needs in _backends(device).items():
            print(f"{'backend':<13} {name} on {device}: {_tried(name, needs, device)}")
    device = devices[min(1, len(devices) - 1)]
    images = torch.randn(64, 3, 224, 224).to(device)
    corrupt = GroupMask(16, ratio=0.5, fill="noise", seed=0)
    with _only("triton,compiled,functions"):
        ours, clone = _milliseconds(lambda: corrupt(images)), _milliseconds(images.clone)
    print(f"{'timing':<13} noise over half of 64 x 3 x 224 x 224 float32 on {device}: {ours:.2f} ms; ", end="")
    print(f"images.clone(): {clone:.2f} ms")


def _backends(device: str) -> dict[str, str]:
    """Return the backends that could run on a type of device, each with the package that it needs."""
    here = [each for each in (*sampling.BACKENDS, *filling.BACKENDS) if each.device in (None, device)]
    return {each.name: each.needs for each in here}


def _tried(name: str, needs: str, device: str) -> str:
    """Draw and write by one backend, and say how that went."""
    if importlib.util.find_spec(needs) is None:
        return f"{needs} is not installed"
    images = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0)).to(device)
    filled = []
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for names in ("functions", name):
            with _only(names):
                filled.append(GroupMask(16, fill={"noise": 1, "alien": 1}, seed=0)(images))
    failures = [str(warning.message) for warning in said if "goes on without" in str(warning.message)]
    same = all(torch.equal(*pair) for pair in zip(*filled, strict=True))
    return failures[0] if failures else "works" if same else "WRONG: its bits are not those of the torch functions"


@contextmanager
def _only(names: str) -> Iterator[None]:
    """Choose the backends for a while."""
    before = os.environ.get("GMML_AUG_BACKENDS")
    os.environ["GMML_AUG_BACKENDS"] = names
    try:
        yield
    finally:
        if before is None:
            del os.environ["GMML_AUG_BACKENDS"]
        else:
            os.environ["GMML_AUG_BACKENDS"] = before


def _milliseconds(call: Callable[[], Any]) -> float:
    """Return the median of nine calls, after three that are not counted."""
    times = []
    for _ in range(12):
        begin = time.perf_counter()
        call()
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        times.append(time.perf_counter() - begin)
    return statistics.median(times[3:]) * 1e3


def _one_or_pair(numbers: list[float]) -> float | tuple[float, ...]:
    return numbers[0] if len(numbers) == 1 else tuple(numbers)


def _shortened(name: str, most: int) -> str:
    """Return a file name without bytes that no terminal shows, and without its middle where it is long."""
    name = os.fsencode(name).decode("utf-8", "replace")
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-most // 2 :]}"


def _counted(sizes: list[int]) -> str:
    runs = ((size, len(list(run))) for size, run in itertools.groupby(sizes))
    return ", ".join(f"{times} times {size}" if times > 1 else f"{size}" for size, times in runs) or "none"


if __name__ == "__main__":
    main()
