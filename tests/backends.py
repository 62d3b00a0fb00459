"""The backends that can be tried here: those whose packages are installed, Triton's in its interpreter."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

import torch

from gmml_aug import Alien, Fill, Noise, Zeros, filling, sampling
from gmml_aug.backends import Backend
from gmml_aug.filling.fills import BUILT_IN

# Every built-in fill, and what they do with arguments of their own.
FILLS: list[Fill] = [*BUILT_IN.values(), Zeros(3), Zeros((1, 2, 3)), Noise(0.3, 1.7), Alien("group")]


def _here(backends: tuple[Backend, ...]) -> dict[str, ModuleType]:
    found = {}
    for backend in backends:
        if importlib.util.find_spec(backend.needs) is not None:
            found[backend.module.removeprefix("gmml_aug.")] = importlib.import_module(backend.module)
    return found


DRAWING = _here(sampling.BACKENDS)
WRITING = _here(filling.BACKENDS)
DEVICES = {name: torch.device("cuda" if "triton" in name and torch.cuda.is_available() else "cpu") for name in
           (*DRAWING, *WRITING)}  # fmt: skip
SETTINGS = ["functions", *(["compiled,functions"] if importlib.util.find_spec("numba") else [])]
