"""Randomness: a draw is a function of its key alone."""

import itertools
import subprocess
import sys
from pathlib import Path

import torch

from nas.randomness import generator, seed_global, seed_of


def draw(seed: int, *key: int | str) -> tuple[float, ...]:
    return tuple(torch.rand(8, generator=generator(seed, *key)).tolist())


def test_distinct_keys_give_distinct_streams():
    keys = list(itertools.product(range(4), ("augment", "order"), ("train", "arch"), range(50)))
    assert len({draw(*key) for key in keys}) == len(keys)


def test_keys_are_told_apart_by_type_and_by_their_parts():
    keys = [(1, 23), (12, 3), (1, "23"), (1, 2, 3), (1, "2", "3"), (1, "23", ""), (1, "2', '3"), (1,), (-1,)]
    assert len({seed_of(*key) for key in keys}) == len(keys)


def test_a_draw_depends_on_its_key_alone():
    first = draw(0, "decision", 7)
    torch.manual_seed(123)
    torch.rand(10)
    draw(0, "decision", 6)
    assert draw(0, "decision", 7) == first


def test_a_keyed_draw_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    draw(0, "decision", 7)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_global_generator_follows_the_key():
    with torch.random.fork_rng(devices=[]):
        seed_global(0, "step", 3)
        first = torch.rand(8)
        seed_global(0, "step", 4)
        second = torch.rand(8)
        seed_global(0, "step", 3)
        assert torch.equal(torch.rand(8), first)
        assert not torch.equal(second, first)
        assert tuple(first.tolist()) == draw(0, "step", 3)


def test_accelerators_are_seeded_where_there_are_any(monkeypatch):
    seeds = []
    monkeypatch.setattr(torch, "manual_seed", seeds.append)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    seed_global(0, "step", 3)
    assert seeds == [seed_of(0, "step", 3)]


def test_seeds_are_the_same_in_another_process():
    code = "from nas.randomness import seed_of; print(seed_of(0, 'augment', 'train', 5))"
    root = Path(__file__).parents[1]
    printed = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True).stdout
    assert int(printed) == seed_of(0, "augment", "train", 5)


def test_seeds_fill_63_bits():
    seeds = [seed_of(0, step) for step in range(1000)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    # A bit is absent from 1000 fair draws with probability 2**-1000.
    assert sum(seed >> 62 for seed in seeds) > 0
    # Neighbouring keys differ in 31.5 of 63 bits on average; 999 pairs put the mean within 0.13 of that.
    flips = [(a ^ b).bit_count() for a, b in itertools.pairwise(seeds)]
    assert abs(sum(flips) / len(flips) - 31.5) < 0.7  # five standard errors
