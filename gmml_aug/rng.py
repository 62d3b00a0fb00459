"""Counter-based random numbers: (seed, sample, slot) -> 64 bits, the same on every device.

The mixing function is the finaliser of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number
generators", OOPSLA 2014, section 4), written in int64 that wraps: torch has no arithmetic on uint64. A word depends
on its own (seed, sample, slot) alone, so it does not matter how samples are batched, or where and in which order
they are drawn.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


def _signed(value: int) -> int:
    """Return the int64 with the same 64 bits as ``value``."""
    return (value + 2**63) % 2**64 - 2**63


_GAMMA = _signed(0x9E3779B97F4A7C15)
_MUL_1 = _signed(0xBF58476D1CE4E5B9)
_MUL_2 = _signed(0x94D049BB133111EB)
_LOW_32 = 2**32 - 1

# What each slot of a sample is for: one map for the whole package, so that no two purposes share a word.
COUNT_SLOT = 0  # upper half: the ratio; lower half: corrupted or not
FILL_SLOT = 1  # upper half: which fill; lower half: which donor
CUT_SLOT = 2  # upper half: from which side the last group is cut
RECTANGLE_SLOT = 16  # two words for each rectangle
PATCH_SLOT = 2**32  # one word for each patch: its rank
SHUFFLE_SLOT = 2**33  # one word for each patch: where its content comes from
NOISE_SLOT = 2**34  # one word for every four normals or eight bytes


def _shift(z: Tensor, bits: int) -> Tensor:
    # torch's >> on int64 copies the sign; the generator needs zeros.
    shifted: Tensor = (z >> bits) & (2 ** (64 - bits) - 1)
    return shifted


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift(z, 30)) * _MUL_1
    z = (z ^ _shift(z, 27)) * _MUL_2
    return z ^ _shift(z, 31)


@lru_cache(maxsize=256)
def root(seed: int, stream: int) -> int:
    """Return the 64-bit root (as int64) from which the samples of one stream of a seed draw their keys.

    Stream 0 is the one that ``index`` names; every DataLoader worker and every rank has another.
    """
    first = _mix(torch.tensor(_signed(seed + _GAMMA), device="cpu"))  # _mix(0) is 0: seed 0 must not stay there
    return int(_mix(first + _signed(stream * _GAMMA)) if stream else first)


def keys(root: int | Tensor, samples: Tensor) -> Tensor:
    """Return the key of each sample: int64, the shape of ``samples`` (int64)."""
    return _mix(samples * _GAMMA + root)


def words(key: Tensor, start: int, count: int) -> Tensor:
    """Return the words of the slots ``start`` to ``start + count - 1``: key ``(B,)`` -> ``(B, count)`` int64."""
    slots = torch.arange(count, device=key.device) * _GAMMA + _signed(start * _GAMMA)
    return _mix(key[:, None] + slots)


def halves(word: Tensor) -> tuple[Tensor, Tensor]:
    """Cut each word into two independent 32-bit numbers, held in int64."""
    return _shift(word, 32), word & _LOW_32


def below(u32: Tensor, bound: int | Tensor) -> Tensor:
    """Map 32-bit numbers to 0..bound-1 with a multiply and a shift: no float, so no device rounds it differently."""
    scaled: Tensor = (u32 * bound) >> 32
    return scaled


@lru_cache(maxsize=16)
def _quantiles(device: torch.device) -> Tensor:
    """Return the normal distribution's quantiles at (i + 1/2) / 65536, scaled to a variance of exactly 1."""
    table = torch.special.ndtri((torch.arange(65536, dtype=torch.float64, device="cpu") + 0.5) / 65536)
    scaled = torch.div(table, table.square().mean().sqrt())
    return scaled.to(device, torch.float32, non_blocking=True)


def normal(key: Tensor, count: int) -> Tensor:
    """Return standard normal numbers: key ``(B,)`` -> ``(B, count)`` float32.

    Each word gives four, by the inverse distribution function at 16 bits (so none is beyond 4.33 in size). A table
    look-up has no rounding of its own: the values do not depend on the device or on how a loop was vectorised, which
    logarithms and cosines do.
    """
    sixteen = words(key, NOISE_SLOT, -(-count // 4)).view(torch.int16)[:, :count].contiguous()
    return _quantiles(key.device)[sixteen.to(torch.int32).bitwise_and(0xFFFF)]


def uint8(key: Tensor, count: int) -> Tensor:
    """Return uniform bytes: key ``(B,)`` -> ``(B, count)`` uint8."""
    return words(key, NOISE_SLOT, -(-count // 8)).view(torch.uint8)[:, :count].contiguous()


def _words_fake(key: Tensor, start: int, count: int) -> Tensor:
    return key.new_empty(key.shape[0], count)


def _normal_fake(key: Tensor, count: int) -> Tensor:
    return key.new_empty((key.shape[0], count), dtype=torch.float32)


def _uint8_fake(key: Tensor, count: int) -> Tensor:
    return key.new_empty((key.shape[0], count), dtype=torch.uint8)


# Opaque to torch.compile, which would not keep int64 arithmetic wrapping.
for _function, _fake, _schema in (
    (words, _words_fake, "(Tensor key, SymInt start, SymInt count) -> Tensor"),
    (normal, _normal_fake, "(Tensor key, SymInt count) -> Tensor"),
    (uint8, _uint8_fake, "(Tensor key, SymInt count) -> Tensor"),
):
    _name = f"gmml_aug::{_function.__name__}"
    torch.library.define(_name, _schema)
    torch.library.impl(_name, "default", _function)
    torch.library.register_fake(_name, _fake)
