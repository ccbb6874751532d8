"""Keyed randomness: every draw is a function of a seed and a key, never of what was drawn before.

A generator for (seed, stream, step) is made where it is needed, so a checkpoint holds a step number instead of
generator states, and a resumed run draws what the uninterrupted one would have drawn.
"""

import hashlib

import torch

Key = int | str


def seed_of(seed: int, *key: Key) -> int:
    """Returns a 63-bit seed for `key`.

    torch's CPU generator keeps the lowest 32 bits, so two keys share a stream with probability 2**-32.
    """
    text = repr((seed, *key))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(seed: int, *key: Key) -> torch.Generator:
    """Returns a fresh CPU generator for `key`, e.g. `generator(seed, "augment", "train", step)`."""
    return torch.Generator().manual_seed(seed_of(seed, *key))


def seed_global(seed: int, *key: Key) -> None:
    """Seeds torch's global generators on all devices, for modules that take no generator (dropout, initialisation)."""
    number = seed_of(seed, *key)
    if torch.accelerator.is_available():
        torch.manual_seed(number)
    else:  # torch.manual_seed formats a stack trace for every kind of device that is absent
        torch.default_generator.manual_seed(number)
