"""What new tensors hold, counted by hand: views and what was there before count nothing, what is freed no longer."""

import torch

from fedgen.devices.held import Held

FLOAT = 4  # bytes


def test_what_is_made_counts_until_it_is_freed() -> None:
    with Held() as held:
        one = torch.zeros(100)
        assert held.now == 100 * FLOAT
        del one
        assert held.now == 0
        two = torch.zeros(30) + 1  # for a moment both are there
        assert (held.now, held.most) == (30 * FLOAT, 100 * FLOAT)
        assert len(two) == 30


def test_views_and_what_was_there_before_count_nothing() -> None:
    before = torch.zeros(8, 8)
    with Held() as held:
        before.t()[:2].add_(1)
        assert held.most == 0
        made = before @ before.t()
        made.view(64)[:5].mul_(2)
        assert (held.now, held.most) == (64 * FLOAT, 64 * FLOAT)


def test_what_a_backward_pass_needs_is_held_until_it_is_done() -> None:
    leaf = torch.ones(1000, requires_grad=True)
    with Held() as held:
        out = leaf.exp().sum()
        assert held.now == 1001 * FLOAT  # exp keeps what it made
        (slope,) = torch.autograd.grad(out, leaf)
        assert held.now == 1001 * FLOAT  # the slope is there instead
        assert len(slope) == 1000
        assert 2000 * FLOAT < held.most <= 2003 * FLOAT
