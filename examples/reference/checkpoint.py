"""Checkpoints that are whole or not there: one safetensors file, put in its place by one rename."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

# Names and whole tensors whatever the model is wrapped in, DDP and FSDP too; on the first process alone where several
# hold a part each.
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Call ``write(path)`` with another name, and give the file its own once it is on the disk.

    Where that fails, as on a full disk, what was there before stays.
    """
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        write(unfinished)
        with open(unfinished, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except OSError as error:
        with suppress(OSError):
            unfinished.unlink()  # the disk may need the room
        error.filename = error.filename or str(path)
        raise


def save_tensors(path: Path, tensors: dict[str, Tensor], about: dict[str, Any] | None = None) -> None:
    """Write tensors, and a note on them in the file's header, atomically."""
    metadata = {"about": json.dumps(about or {})}  # one entry: safetensors writes several in an order by chance
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    # Not save_file, whose files are for their owner alone (0600), and whose errors are no OSError.
    write_whole(path, lambda unfinished: unfinished.write_bytes(save(whole, metadata)))


def save_text(path: Path, text: str) -> None:
    write_whole(path, lambda unfinished: unfinished.write_text(text))


def state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return ``model.<name>`` and ``optimizer.<name>:<what>``; empty but on the first process of several."""
    of_model, of_optimizer = get_state_dict(model, optimizer, options=WHOLE)
    tensors: dict[str, Any] = {f"model.{name}": value for name, value in of_model.items()}
    states: Any = of_optimizer.get("state", {})
    for name, values in states.items():
        tensors |= {f"optimizer.{name}:{what}": value for what, value in values.items()}
    return tensors


@contextmanager
def _reading(path: Path) -> Iterator[Any]:
    """Open a safetensors file; end here if it was cut off or is none."""
    try:
        with safe_open(path, "pt") as file:
            yield file
    except SafetensorError as error:
        raise SystemExit(f"{path} cannot be read, perhaps cut off. Delete it, or copy it again ({error})") from None


def about(path: Path) -> dict[str, Any]:
    """Return what ``save_tensors`` noted in a file's header."""
    with _reading(path) as file:
        noted: dict[str, Any] = json.loads(file.metadata()["about"])
    return noted


def tensors(path: Path, prefix: str = "") -> dict[str, Tensor]:
    """Return a file's tensors whose names begin with ``prefix``, without it."""
    with _reading(path) as file:
        names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 (no dict)
        return {name.removeprefix(prefix): file.get_tensor(name) for name in names}


def restore(saved: dict[str, Tensor], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Load what ``state`` gave, on every process the whole of it."""
    _, of_optimizer = get_state_dict(model, optimizer, options=StateDictOptions(full_state_dict=True))
    of_model: dict[str, Any] = {}
    states: dict[str, Any] = {}
    for key, value in saved.items():
        kind, _, name = key.partition(".")
        if kind == "model":
            of_model[name] = value
        else:
            parameter, _, what = name.rpartition(":")
            states.setdefault(parameter, {})[what] = value
    of_optimizer["state"] = states
    set_state_dict(model, optimizer, model_state_dict=of_model, optim_state_dict=of_optimizer, options=WHOLE)
