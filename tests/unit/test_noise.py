"""The noise of a draw: golden numbers, the same on both sides, and independent of each other."""

import hashlib

import numpy as np
import pytest
import torch

from coordinator.sampling.noise import gumbels, noise_key, uniforms
from stage_server.compute import noise

torch.set_num_threads(1)

SPLITMIX64_OF_1234567 = (
    6457827717110365317,
    3203168211198807973,
    9817491932198370423,
    4593380528125082431,
    16408922859458223821,
)
"""Widely published outputs of the generator; it counts from 1, token ids from 0."""

KEYS = (0, 1, 1234567, 2**63 - 1, 2**63, 2**64 - 1, 0x0123456789ABCDEF)


def slow_bits(key: int, token_id: int) -> int:
    """The specification of `stage.proto`, word for word."""
    mask = 2**64 - 1
    x = (key + (token_id + 1) * 0x9E3779B97F4A7C15) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    x = x ^ (x >> 31)
    return x >> 12


def bits(key: int, token_ids: range) -> list[int]:
    numbers = uniforms(key, np.arange(token_ids.start, token_ids.stop))
    return [int(number) for number in numbers * 2.0**52 - 0.5]


def test_numbers_are_the_published_outputs_of_splitmix64() -> None:
    expected = [output >> 12 for output in SPLITMIX64_OF_1234567]
    assert bits(1234567, range(5)) == expected
    assert [slow_bits(1234567, i) for i in range(5)] == expected


@pytest.mark.parametrize(
    ("seed", "position", "expected"),
    [
        (0, 0, 0x0E7494F907A55052),
        (7, 3, 0x2F425A68C9C449BA),
        (2**64 - 1, 2**64 - 1, 0x2787B85CCF3569F5),
    ],
)
def test_golden_keys(seed: int, position: int, expected: int) -> None:
    data = seed.to_bytes(8, "little") + position.to_bytes(8, "little")
    assert expected == int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
    assert noise_key(seed, position) == expected


@pytest.mark.parametrize("key", KEYS)
def test_both_sides_compute_the_same_bits(key: int) -> None:
    token_ids = range(1000)
    expected = [slow_bits(key, token_id) for token_id in token_ids]
    assert bits(key, token_ids) == expected
    signed = key - 2**64 if key >= 2**63 else key
    steps = noise._steps(1000, torch.device("cpu"))
    assert noise.hashed(steps + signed).tolist() == expected


def test_numbers_never_reach_the_ends_at_which_logarithms_are_infinite() -> None:
    ends = (np.array([0.0, 2.0**52 - 1]) + 0.5) * 2.0**-52
    assert np.isfinite(gumbels(ends)).all()
    assert ends[0] > 0
    assert ends[1] < 1


def test_noise_has_the_distribution_of_gumbel() -> None:
    noise_of_one = gumbels(
        np.array([uniforms(noise_key(3, p), np.array([5]))[0] for p in range(20_000)])
    )
    for quantile in (0.01, 0.1, 0.5, 0.9, 0.99):
        share = (noise_of_one < -np.log(-np.log(quantile))).mean()
        assert abs(share - quantile) < 4 * np.sqrt(quantile * (1 - quantile) / len(noise_of_one))


def test_numbers_of_neighbours_are_independent() -> None:
    """Of ids, of positions and of seeds."""
    ids = np.arange(4000)
    by_id = uniforms(noise_key(1, 0), ids)
    by_position = np.array([uniforms(noise_key(1, p), ids[:1])[0] for p in range(4000)])
    by_seed = np.array([uniforms(noise_key(s, 0), ids[:1])[0] for s in range(4000)])
    for numbers in (by_id, by_position, by_seed):
        assert abs(np.corrcoef(numbers[1:], numbers[:-1])[0, 1]) < 0.06
        shares = np.histogram(numbers, bins=10, range=(0, 1))[0] / len(numbers)
        np.testing.assert_allclose(shares, 0.1, atol=0.025)
    other = uniforms(noise_key(1, 1), ids)
    assert abs(np.corrcoef(by_id, other)[0, 1]) < 0.06
