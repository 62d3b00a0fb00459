"""The numbers: right bits, evenly spread, and a function of their place alone."""

import math

import pytest
import torch

from gmml_aug import rng


def splitmix64(state: int, steps: int) -> list[int]:
    """Return the generator's outputs in Python's whole numbers, as its authors define it."""
    out = []
    for _ in range(steps):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = state
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        out.append(z ^ (z >> 31))
    return out


def test_words_are_splitmix64() -> None:
    assert splitmix64(0, 1) == [0xE220A8397B1DCDAF]  # published first output of seed 0
    for key in (0, 1, -1, 2**63 - 1, -(2**63), 123456789):
        words = rng.words(torch.tensor([key]), 1, 100)[0].tolist()
        assert [word % 2**64 for word in words] == splitmix64(key % 2**64, 100)


def test_pythons_integers_mix_as_the_tensors_do() -> None:
    for key in (0, 1, -1, 2**63 - 1, -(2**63), 123456789, 2**64 + 7):
        assert rng.word(key, 1) == splitmix64(key % 2**64, 1)[0]
    for value in (0, 5, -1, 2**63, 2**64 - 1, -(2**63)):
        assert -(2**63) <= rng.signed(value) < 2**63
        assert (rng.signed(value) - value) % 2**64 == 0
    for seed, stream in ((0, 0), (0, 1), (-1, 3), (2**63 - 1, 1 << 32)):
        root, samples = rng.root(seed, stream), [0, 1, -7, 2**40, 2**63 - 1]
        tensors = rng.keys(root, torch.tensor(samples))
        assert [rng.signed(rng.word(root, sample)) for sample in samples] == tensors.tolist()


def test_a_word_depends_on_its_slot_and_key_alone() -> None:
    key = rng.keys(5, torch.arange(7))
    whole = rng.words(key, rng.NOISE_SLOT, 50)
    assert torch.equal(rng.words(key[3:4], rng.NOISE_SLOT + 20, 10), whole[3:4, 20:30])


def test_keys_of_seeds_streams_and_samples_are_distinct() -> None:
    keys = torch.cat(
        [
            rng.keys(rng.root(seed, stream), torch.arange(500))
            for seed in (0, 1, -1, 2**63 - 1)
            for stream in (0, 1, 2, 1 << 32, (1 << 32) + 1)
        ]
    )
    assert len(keys.unique()) == len(keys)


def test_a_stream_is_no_other_seeds_stream_0_that_a_short_formula_names() -> None:
    for seed in (0, 1, -1, 12345):
        mixed = rng.word(seed, 1)
        for stream in (1, 2, 1 << 32, (1 << 32) + 1):
            assert rng.root(seed, stream) != rng.root(rng.signed(mixed + (stream - 1) * rng.GAMMA), 0)


@pytest.mark.parametrize("bound", [1, 2, 3, 14, 1000])
def test_below_is_uniform(bound: int) -> None:
    draws = 200_000
    upper, lower = rng.halves(rng.words(rng.keys(11, torch.arange(draws)), 0, 1)[:, 0])
    for half in (upper, lower):
        assert half.min() >= 0
        assert half.max() < 2**32
        counts = rng.below(half, bound).bincount(minlength=bound).double()
        assert len(counts) == bound
        expected = draws / bound
        chi2 = ((counts - expected) ** 2 / expected).sum().item()
        # Mean bound - 1, variance twice that: a fair generator fails one time in 10^6 or less. The seed is fixed.
        assert chi2 <= (bound - 1) + 6 * math.sqrt(2 * max(bound - 1, 1)) + 12


def test_normal_is_standard_normal() -> None:
    count = 1_000_000
    sample = rng.noise(rng.keys(3, torch.arange(10)), 1, count // 10, torch.float32).flatten().double()
    # Each bound is five standard errors: a true normal fails one of them about once in 10^6. The seed is fixed.
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((sample**power).mean().item() - moment) < 5 * math.sqrt(variance / count)
    for point in (-3.0, -1.0, -0.1, 0.5, 2.0):
        below = torch.special.ndtr(torch.tensor(point, dtype=torch.float64)).item()
        assert abs((sample < point).double().mean().item() - below) < 5 * math.sqrt(below * (1 - below) / count)
    neighbours = (sample[:-1] * sample[1:]).mean().item()
    assert abs(neighbours) < 5 / math.sqrt(count)


def test_uint8_is_uniform() -> None:
    drawn = rng.noise(rng.keys(3, torch.arange(10)), 1, 100_000, torch.uint8)
    counts = drawn.flatten().long().bincount(minlength=256).double()
    expected = 1_000_000 / 256
    assert ((counts - expected) ** 2 / expected).sum() < 255 + 6 * math.sqrt(2 * 255)


def test_noise_is_made_of_its_words_from_the_lowest_bits_on() -> None:
    keys = [0, 5, -(2**63), 2**62 + 1]
    words = [splitmix64((key + (rng.NOISE_SLOT - 1) * 0x9E3779B97F4A7C15) % 2**64, 4) for key in keys]
    data = [b"".join(word.to_bytes(8, "little") for word in row) for row in words]
    assert rng.noise(torch.tensor(keys), 1, 27, torch.uint8)[:, 0].tolist() == [list(row[:27]) for row in data]
    draws = torch.tensor([[row[i] + 256 * row[i + 1] for i in range(0, 26, 2)] for row in data])
    assert torch.equal(rng.noise(torch.tensor(keys), 1, 13, torch.float16)[:, 0], rng.normal_levels()[draws])


def test_the_normal_levels_are_the_normal_quantiles() -> None:
    levels = rng.normal_levels()
    assert (levels.dtype, levels.shape) == (torch.float32, (65536,))
    value = levels.double()
    assert len(value.unique()) == 65536
    upper, lower = value[: 2**15], value[2**15 :]
    assert torch.equal(lower, -upper)  # the highest bit of a draw is the sign
    assert (upper > 0).all()
    assert (upper.diff() < 0).all()
    assert 4.3 < upper[0] < 4.33
    assert value.mean() == 0
    assert abs(value.square().mean().item() - 1) < 1e-4
    quantile = -torch.special.ndtri((2 * torch.arange(2**15, dtype=torch.float64) + 1) / 2**17)
    assert (upper - quantile / quantile.square().mean().sqrt()).abs().max() < 0.0003


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("count", [1, 7, 8, 135])
def test_noise_of_a_sample_does_not_depend_on_its_batch(count: int, dtype: torch.dtype) -> None:
    key = rng.keys(9, torch.arange(4))
    whole = rng.noise(key, 6, count, dtype)
    assert torch.equal(whole, torch.cat([rng.noise(k[None], 6, count, dtype) for k in key]))
    assert torch.equal(whole[:, :2], rng.noise(key, 2, count, dtype))  # nor on how many patches there are
    assert len({tuple(patch.tolist()) for patch in whole.view(24, count)}) > (20 if count >= 7 else 5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_patches_share_an_images_words_out_among_them(dtype: torch.dtype) -> None:
    key, each = rng.keys(9, torch.arange(4)), 8 if dtype == torch.uint8 else 4
    whole = rng.noise(key, 1, 6 * 2 * each, dtype).view(4, 6, 2 * each)
    assert torch.equal(rng.noise(key, 6, 2 * each, dtype), whole)  # no word is left out
    assert torch.equal(rng.noise(key, 6, 2 * each - 3, dtype), whole[..., : 2 * each - 3])  # but the rest of a patch's


@pytest.mark.parametrize("count", [1, 8, 135])
def test_operators_keep_torchs_rules(count: int) -> None:
    """Torch's own check: schema, fake results (shapes and strides too) and autograd registration."""
    key = rng.keys(9, torch.arange(4))
    torch.library.opcheck(torch.ops.gmml_aug.words.default, (key, 3, count))
    for dtype in (torch.uint8, torch.float32, torch.bfloat16):
        torch.library.opcheck(torch.ops.gmml_aug.noise.default, (key, 6, count, dtype))
