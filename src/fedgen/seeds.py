"""Randomness by purpose: every draw has its own generator, named by run, round, client and use.

There is no global random state, so a resumed run draws what the uninterrupted run would have drawn.
"""

import hashlib

import torch


def seed(run: int, turn: int, client: str, use: str) -> int:
    """A 63-bit number that depends on nothing but its name."""
    name = "\x1f".join((str(run), str(turn), client, use))
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest()) >> 1


def generator(run: int, turn: int, client: str, use: str) -> torch.Generator:
    """A generator for one use; `turn` is the round, or -1 before the first."""
    return torch.Generator().manual_seed(seed(run, turn, client, use))
