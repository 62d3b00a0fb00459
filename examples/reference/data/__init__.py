"""Images for the examples, one file a source; ``load`` gives those that ``--data`` names.

A set that fits is decoded once and held in memory on the device as uint8; workers read any other from its files.
"""

from __future__ import annotations

from pathlib import Path

import torch

from ..config import Config
from .sources import Data


def load(
    name: str, image_size: int, device: torch.device, samples_per_epoch: int | None = None, labelled: bool = True
) -> Data:
    """Return the data that ``--data`` names, with images of ``image_size`` pixels a side."""
    from .shards import is_remote, shards

    if is_remote(name) or name.endswith((".tar", ".tar.gz", ".tgz")):
        return shards(name, samples_per_epoch, image_size, device)
    if samples_per_epoch is not None:
        raise SystemExit(f"--samples-per-epoch {samples_per_epoch} is for shards; the images of {name} are counted")
    if name == "digits":
        from .digits import digits

        return digits(image_size, device)
    if name.startswith("torchvision:"):
        from .of_torchvision import of_torchvision

        return of_torchvision(name.removeprefix("torchvision:"), image_size, device)
    if not Path(name).is_dir():
        raise SystemExit(
            "--data takes 'digits', 'torchvision:NAME', a folder of images, or shards such as 'FOLDER/{000..099}.tar'; "
            f"there is no folder {name!r}"
        )
    from .folder import folder

    return folder(Path(name), image_size, device, labelled)


def of_run(config: Config, device: torch.device) -> Data:
    """Return the images of a run's settings."""
    return load(config.data, config.image_size, device, config.samples_per_epoch, not config.no_labels)


def the_same_images(run: Path, config: Config, data: Data) -> None:
    """End here if images came, went or changed since the run: held-out ones may be among those that it trained on."""
    if config.version_of_images != data.fingerprint:
        raise SystemExit(
            f"the images of {config.data} are not those that {run} was pretrained on: some came, went or changed. "
            f"Put them back; or give --data {config.data}, if none that is held out now was trained on"
        )
