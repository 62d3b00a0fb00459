"""Which backends draw and write on this machine: the quickest that takes a call, else the torch functions.

``GMML_AUG_BACKENDS=functions`` turns all others off; ``compiled,functions`` has the loops compiled at once, which
otherwise happens when a process has drawn and written long enough to earn the time back.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import time
import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

NAMES = ("triton", "compiled", "functions")
_PRICE = 1.5  # seconds that it takes to import Numba and to load what it compiled before
_broken: set[str] = set()  # what failed here
_owed = 0.0  # seconds that this process spent in functions where a compiled loop could have run


class Backend(NamedTuple):
    """A file that draws or writes.

    Attributes:
        name: one of :data:`NAMES`.
        module: the file, imported when it is first wanted.
        device: the only type of device on which it runs; None for any.
        needs: the package without which it is left out.
    """

    name: str
    module: str
    device: str | None = None
    needs: str = "torch"


@lru_cache(maxsize=64)
def _parsed(names: str) -> tuple[str, ...]:
    chosen = tuple(name.strip() for name in names.split(",") if name.strip())
    if unknown := [name for name in chosen if name not in NAMES]:
        raise ValueError(f"GMML_AUG_BACKENDS is a list of {', '.join(NAMES)}, with commas between; got {unknown[0]!r}")
    return chosen


@lru_cache(maxsize=64)
def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _allowed(backend: Backend, device: str, names: tuple[str, ...]) -> bool:
    if backend.device not in (None, device):
        return False
    if backend.name == "functions":
        return True
    if backend.name in _broken or (names and backend.name not in names) or not _installed(backend.needs):
        return False
    # Compiled loops are loaded once the process has paid as much in slower calls: never twice as slow as what would
    # have been best, whether it lives for a second or a week.
    return backend.name != "compiled" or backend.name in names or _owed >= _PRICE


def run(backends: Sequence[Backend], function: str, device: torch.device, *arguments: Any) -> Any:
    """Call a function of the first backend that runs on the device and takes the arguments.

    A backend that fails is left out from then on, with one warning, and the functions go on: the others compile all
    that they need before they write, so nothing has been written yet.
    """
    global _owed
    names, kind, begin = _parsed(os.environ.get("GMML_AUG_BACKENDS", "")), device.type, time.perf_counter()
    for backend in backends:
        if not _allowed(backend, kind, names):
            continue
        try:
            module: Any = sys.modules.get(backend.module) or importlib.import_module(backend.module)
            if module.takes(*arguments):
                result = getattr(module, function)(*arguments)
                if backend.name == "functions" and kind == "cpu" and _owed < _PRICE:
                    _owed += time.perf_counter() - begin
                return result
        except (torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as error:  # no C compiler, say, which Triton needs at run time
            if backend.name == "functions":
                raise
            _broken.add(backend.name)
            warnings.warn(
                f"gmml_aug goes on without its {backend.name} backend, which failed here "
                f"({backend.needs} {getattr(sys.modules.get(backend.needs), '__version__', '?')}, "
                f"torch {torch.__version__}): "
                f"{type(error).__name__}: {error}. GMML_AUG_BACKENDS=functions turns such backends off",
                stacklevel=2,
            )
    raise AssertionError("the last backend takes everything")


def transformed() -> bool:
    """Tell whether torch.func (vmap, grad) carries the call out."""
    try:
        return torch._C._functorch.peek_interpreter_stack() is not None
    except AttributeError:  # not torch's public interface
        return False


def mapped(tensor: Tensor) -> bool:
    """Tell whether torch.func.vmap maps over a tensor."""
    try:
        return torch._C._functorch.is_batchedtensor(tensor)
    except AttributeError:  # not torch's public interface
        return False


def dispatches(tensor: Tensor) -> bool:
    """Tell whether a tensor's class carries torch's operators out by itself, as FakeTensor does."""
    kind = type(tensor)
    return kind is not Tensor and kind.__torch_dispatch__ is not Tensor.__torch_dispatch__


def watched(*tensors: Tensor) -> bool:
    """Tell whether something of torch's is to see the operators of a call: the compiler, a mode, vmap, a tensor."""
    if torch.compiler.is_compiling() or any(map(dispatches, tensors)):
        return True
    try:
        before_autograd: int = torch._ops._len_torch_dispatch_stack_pre_dispatch()
        modes: bool = torch._C._len_torch_dispatch_stack() + before_autograd > 0
        return modes or transformed() or torch._C._get_tracing_state() is not None
    except AttributeError:
        return True
