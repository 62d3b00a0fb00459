"""Counter-based random numbers: (seed, sample, slot) -> 64 bits, the same on every device.

The mixing function is the finaliser of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number
generators", OOPSLA 2014, section 4), written in int64 that wraps: torch has no arithmetic on uint64. A word depends
on its own (seed, sample, slot) alone, so it does not matter how samples are batched, or where and in which order
they are drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor


def signed(value: int) -> int:
    """Return the int64 with the same 64 bits as ``value``."""
    return (value + 2**63) % 2**64 - 2**63


GAMMA, MUL_1, MUL_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
MASK, _LOW_32 = 2**64 - 1, 2**32 - 1
STREAM = 0xD1B54A32D192ED03  # tells the streams of workers and ranks from stream 0; any other than 0 would do

ARITHMETIC = ("cpu", "cuda", "meta")  # the devices on which numbers are drawn; for others the CPU draws

# The use of each slot of a sample: one map for the whole package, so that no two purposes share a word.
COUNT_SLOT = 0  # upper half: the ratio; lower half: corrupted or not
FILL_SLOT = 1  # upper half: which fill; lower half: which donor
CUT_SLOT = 2  # highest bit: from which side the last group is cut
# Two words for each rectangle: its rows, its columns; or three for each box, with its slices first. Upper half: the
# size, where all sizes are drawn at once only the first word's; lower half: the place.
RECTANGLE_SLOT = 4
PATCH_SLOT = 2**32  # one word for each patch: its rank
TIE_SLOT = 3 * 2**31  # one word for each patch: which of those with equal scores comes first
DONOR_SLOT = 3 * 2**32  # one word for each group; lower half: which donor
SHUFFLE_SLOT = 2**33  # one word for each patch: where its content comes from
NOISE_SLOT = 2**34  # whole words for each patch, of four normals or eight bytes each


def _mix_(z: Tensor) -> Tensor:
    """Mix in place. torch's >> on int64 copies the sign; the generator needs zeros, hence the masks."""
    shifted = (z >> 30).bitwise_and_(2**34 - 1)
    z.bitwise_xor_(shifted).mul_(signed(MUL_1))
    torch.bitwise_right_shift(z, 27, out=shifted).bitwise_and_(2**37 - 1)
    z.bitwise_xor_(shifted).mul_(signed(MUL_2))
    torch.bitwise_right_shift(z, 31, out=shifted).bitwise_and_(2**33 - 1)
    return z.bitwise_xor_(shifted)


def word(key: int, slot: int) -> int:
    """Return the word of a slot, 64 bits without a sign, in Python's integers or, compiled, in unsigned ones."""
    z = key + slot * GAMMA & MASK
    z = (z ^ z >> 30) * MUL_1 & MASK
    z = (z ^ z >> 27) * MUL_2 & MASK
    return z ^ z >> 31


@lru_cache(maxsize=256)
def root(seed: int, stream: int) -> int:
    """Return the 64-bit root (as int64) from which the samples of one stream of a seed draw their keys.

    Stream 0 is the one that ``index`` names; every DataLoader worker and every rank has another.
    """
    first = word(seed, 1)  # the word of seed 0 and slot 0 is 0: seed 0 must not stay there
    # Mixed twice: mixed once, a stream would be stream 0 of the seed that is ``first`` and some steps.
    return signed(word(word(first, stream) ^ STREAM, 0) if stream else first)


def keys(root: int | Tensor, samples: Tensor) -> Tensor:
    """Return the key of each sample: int64, the shape of ``samples`` (int64)."""
    return _mix_(samples * signed(GAMMA) + root)


def words(key: Tensor, start: int, count: int) -> Tensor:
    """Return the words of the slots ``start`` to ``start + count - 1``: key ``(B,)`` -> ``(B, count)`` int64."""
    steps = torch.arange(count, device=key.device) * signed(GAMMA) + signed(start * GAMMA)
    out = key.new_empty(len(key), count)  # so that its strides are plain ones, whatever the key's are
    return _mix_(torch.add(key[:, None], steps, out=out))


def words_at(key: Tensor, slot: Tensor) -> Tensor:
    """Return the word of a slot for each key: int64 both, of shapes that broadcast -> int64 of their common shape."""
    return _mix_(key + slot * signed(GAMMA))


def halves(word: Tensor) -> tuple[Tensor, Tensor]:
    """Cut each word into two independent 32-bit numbers, held in int64."""
    return (word >> 32).bitwise_and_(_LOW_32), word & _LOW_32


def below(u32: Tensor, bound: int | Tensor) -> Tensor:
    """Map 32-bit numbers to 0..bound-1 with a multiply and a shift: no float, so no device rounds it differently."""
    scaled: Tensor = (u32 * bound) >> 32
    return scaled


def another(own: Tensor, u32: Tensor, count: int) -> Tensor:
    """Choose one of 0..count-1 other than ``own``, by a 32-bit number; -1 where there is no other."""
    return (own + 1 + below(u32, count - 1)) % count if count > 1 else torch.full_like(u32, -1)


# |z| in units of 2^-16 by the octave of v = 2 m + 1, where m is the lower 15 bits of a draw: a cubic in v's place t
# within its octave, with t in units of 2^-15. Fitted to the normal distribution's quantiles at v / 2^17, scaled to a
# variance of 1; it is within 0.0003 of them, strictly monotone, and every product stays below 2^31.
NORMAL_CUBICS = (
    (283441, 0, 0, 0),
    (267141, 0, 0, 0),
    (261908, -10640, 0, 0),
    (251761, -15702, 5888, -1552),
    (240394, -16429, 6206, -1649),
    (228522, -17221, 6510, -1731),
    (216077, -18101, 6811, -1810),
    (202975, -19114, 7142, -1895),
    (189106, -20305, 7515, -1991),
    (174323, -21736, 7944, -2099),
    (158429, -23496, 8442, -2225),
    (141148, -25733, 9027, -2372),
    (122067, -28698, 9712, -2547),
    (100529, -32874, 10484, -2758),
    (75377, -39328, 11193, -3048),
    (44194, -51071, 10859, -3980),
)


@lru_cache(maxsize=1)
def normal_levels() -> Tensor:
    """Return the normal number of each 16-bit draw: ``(65536,)`` float32, the upper half of the draws below zero.

    Nobody writes to it. It is not made at import: that would start torch's threads, for which a process that is forked
    afterwards would wait without an end.
    """
    draw = torch.arange(65536, dtype=torch.int32, device="cpu")
    bits = (2 * (draw & 0x7FFF) + 1).to(torch.float32).view(torch.int32)  # exact: exponent and fraction of v
    a0, a1, a2, a3 = torch.tensor(NORMAL_CUBICS, dtype=torch.int32, device="cpu")[(bits >> 23) - 127].unbind(1)
    t = (bits >> 8) & 0x7FFF
    size = a0 + ((a1 + ((a2 + (a3 * t >> 15)) * t >> 15)) * t >> 15)
    return torch.where(draw < 2**15, size, -size).to(torch.float32) * 2.0**-16


def noise(key: Tensor, patches: int, count: int, dtype: torch.dtype) -> Tensor:
    """Return the noise of all patches: uniform bytes in uint8 images, else standard normal numbers.

    Each word gives eight bytes; or four numbers, at 16 bits (65,536 levels, none beyond 4.33 in size), by integer
    arithmetic: the values do not depend on the device or on how a loop was vectorised, which logarithms and cosines do.

    Args:
        key: ``(B,)`` int64, one for each image.
        patches: of an image; each takes whole words, one patch after another.
        count: values of a patch.
        dtype: of the images.

    Returns:
        ``(B, patches, count)``, uint8 for uint8, else float32.
    """
    kind = torch.uint8 if dtype == torch.uint8 else torch.uint16
    each = -(-count * kind.itemsize // 8)
    drawn = words(key, NOISE_SLOT, patches * each).view(kind).view(len(key), patches, 8 * each // kind.itemsize)
    if dtype == torch.uint8:
        return drawn[..., :count].contiguous()
    draw = drawn[..., :count].to(torch.int32)
    return normal_levels().to(key.device, non_blocking=True).index_select(0, draw.reshape(-1)).view(draw.shape)


def at_hand(tensor: Tensor) -> Tensor:
    """Return a tensor where 64-bit shifts work: itself, or a copy on the CPU (MPS and others lack them)."""
    return tensor if tensor.device.type in ARITHMETIC else tensor.cpu()


def operator(schema: str, function: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Register an operator of torch's: opaque to torch.compile, which would not keep int64 arithmetic wrapping.

    Args:
        schema: name, arguments and results, as torch.library has them.
        function: what it does, on every device.
        fake: what it returns in shape and dtype.
    """
    name = f"gmml_aug::{schema.partition('(')[0]}"
    torch.library.define(name, schema[schema.index("(") :])
    torch.library.impl(name, "default", function)
    torch.library.register_fake(name, fake)


def _words_at_fake(key: Tensor, slot: Tensor) -> Tensor:
    return key.new_empty(torch.broadcast_shapes(key.shape, slot.shape))


def _noise_fake(key: Tensor, patches: int, count: int, dtype: torch.dtype) -> Tensor:
    kind = torch.uint8 if dtype == torch.uint8 else torch.float32
    return key.new_empty((key.shape[0], patches, count), dtype=kind)


operator(
    "words(Tensor key, SymInt start, SymInt count) -> Tensor", words, lambda key, _, n: key.new_empty(key.shape[0], n)
)
operator("words_at(Tensor key, Tensor slot) -> Tensor", words_at, _words_at_fake)
operator("noise(Tensor key, SymInt patches, SymInt count, ScalarType dtype) -> Tensor", noise, _noise_fake)
