"""A finished run, opened: its settings, weights, and images that go with them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import PartialState
from torch import Tensor

from .checkpoint import tensors
from .config import Config, config_of_finished
from .data import load, of_run, the_same_images
from .data.sources import Data


class Finished(NamedTuple):
    run: Path
    config: Config
    weights: dict[str, Tensor]  # of the Autoencoder
    data: Data
    data_name: str  # as --data has it
    device: torch.device


def opened(run: Path, data_name: str | None) -> Finished:
    """Return a finished run with images, its own if none are named; end here if the two do not go together."""
    config, device = config_of_finished(run), PartialState().device
    data = load(data_name, config.image_size, device) if data_name else of_run(config, device)
    if not data_name:
        the_same_images(run, config, data)
    weights = tensors(run / "autoencoder.safetensors")
    channels = weights["encoder.patch_embed.proj.weight"].shape[1]
    if channels != data.channels:
        raise SystemExit(
            f"{run} was pretrained on images of {channels} channels; those of {data.name} have {data.channels}"
        )
    if config.threads and device.type == "cpu":
        torch.set_num_threads(config.threads)
    return Finished(run, config, weights, data, data_name or config.data, device)
