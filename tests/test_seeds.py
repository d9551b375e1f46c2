"""Draws depend on nothing but their name."""

import itertools

import torch

from fedgen import seeds


def test_a_seed_is_the_same_on_every_machine() -> None:
    assert seeds.seed(0, 1, "alice", "batches") == 7685844780026140338


def test_every_part_of_the_name_counts() -> None:
    names = itertools.product((0, 1, 11), (-1, 0, 1), ("", "a", "1"), ("batches", "masks"))
    found = [seeds.seed(*name) for name in names]
    assert len(set(found)) == len(found)
    assert all(0 <= number < 2**63 for number in found)


def test_generators_of_one_name_draw_the_same_and_leave_the_global_state_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = (seeds.generator(3, 2, client, "noise") for client in ("bob", "bob", "eve"))
    drawn = torch.rand(64, generator=first)
    assert torch.equal(drawn, torch.rand(64, generator=again))
    assert not torch.equal(drawn, torch.rand(64, generator=other))
    assert torch.equal(before, torch.get_rng_state())
