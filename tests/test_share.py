"""What of an adapter is trained and what travels, on real layers: linear ones, convolutions, and a grouped one."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from fedgen import factors, lora, tree
from fedgen.bank import Bank
from fedgen.chart import Square as Chart
from fedgen.chart import Whole
from fedgen.client import pressing
from fedgen.errors import PlanError, TreeError
from fedgen.records import GLOBAL, Offer, Tree
from fedgen.share import SHARES, Halves, Increment, Share, Square, Top, stacked

RANK = 2


class Net(nn.Module):
    """Two linear layers, a convolution and a grouped one; only their shapes matter."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(6, 6) for _ in range(12))  # so that "10" comes before "2" as text
        self.conv, self.grouped = nn.Conv2d(4, 8, 3), nn.Conv2d(4, 8, 1, groups=2)


LAYERS = lora.targets(Net(), ("blocks.2", "blocks.10", "conv", "grouped"))


def adapter(seed: int, rank: int = RANK) -> Tree:
    draw = torch.Generator().manual_seed(seed)
    return {key: torch.randn(x.shape, generator=draw) for key, x in lora.fresh(LAYERS, rank, draw).items()}


def offer(now: Tree, turn: int = 1) -> Offer:
    return Offer(turn, "ann", GLOBAL, now, rank=RANK)


def trained(share: Share, now: Tree, turn: int = 1) -> Tree:
    """What a client would have after it moved every number that it may move."""
    start = share.begin(offer(now, turn))
    if start.frame:  # B stays in the frame's columns
        bank = Bank(Net(), ("blocks.2", "blocks.10", "conv", "grouped"), RANK)
        chart = Chart(bank.layout, start.frame)
        points = chart.down(bank.layout.vector(start.adapter)[None])
        return bank.layout.tree(chart.up(points + 0.5)[0], RANK)
    free = start.free or {key: torch.ones_like(x) for key, x in start.adapter.items()}
    return {key: x + 0.5 * free[key] for key, x in start.adapter.items()}


def product(found: Tree) -> dict[str, torch.Tensor]:
    return {pair.path: torch.bmm(*lora.product_of(pair)) for pair in lora.pairs(found)}


def near(found: Tree, wanted: Tree) -> bool:
    one, two = product(found), product(wanted)
    return all(torch.allclose(one[path], two[path], atol=1e-5) for path in one)


WAYS = [
    Halves(), Halves("a"), Halves("b"), Halves("turns"), Halves("none", keep=True), Halves("a", keep=True),
    Halves("b", keep=True), Halves(keep=True, last=0.5), Increment(), Increment("b"), Top(), Square(),
]  # fmt: skip


def test_every_kind_is_here() -> None:
    assert {type(way) for way in WAYS} == set(SHARES.values())


@pytest.mark.parametrize("share", WAYS, ids=repr)
@pytest.mark.parametrize("turn", [1, 2])
def test_one_client_comes_to_its_own_update(share: Share, turn: int) -> None:
    """With one client the mean is what it sent, so what lands is what it had trained, but for what it kept."""
    now = share.like(adapter(0), turn, RANK) if isinstance(share, Square) else adapter(0)
    own = trained(share, now, turn)
    sent, like = share.sent(own, offer(now, turn)), share.like(now, turn, RANK)
    whole = share.read(sent, like, turn)
    if share.sends in ("increment", "top"):  # their aggregates land them
        assert near(lora.product_sum([(1.0, now), (1.0, whole)]) if share.sends == "increment" else whole, own)
        return
    landed = share.land(now, whole, turn)
    if share.keep:
        assert all(torch.equal(landed[key], (own if key in sent else now)[key]) for key in now)
        assert all(torch.equal(share.meet(landed, own)[key], own[key]) for key in now)
    else:
        assert near(landed, own)
        assert not near(landed, now)


@pytest.mark.parametrize("share", WAYS, ids=repr)
def test_no_more_travels_than_is_said(share: Share) -> None:
    now = adapter(0)
    sent = share.sent(trained(share, now), offer(now))
    ends = {"a": (lora.A_END,), "b": (lora.B_END,), "turns": (lora.B_END,), "none": ()}
    half = "b" if isinstance(share, Square) else getattr(share, "half", "both")
    if half in ends:
        assert all(key.endswith(ends[half]) for key in sent)
    assert tree.size(sent) <= tree.size(now)


def test_halves_take_turns() -> None:
    share, now = Halves("turns"), adapter(0)
    for turn, end in ((1, lora.B_END), (2, lora.A_END), (3, lora.B_END)):
        sent = share.sent(trained(share, now, turn), offer(now, turn))
        assert len(sent) == 4
        assert all(key.endswith(end) for key in sent)


def test_the_last_layers_are_those_with_the_highest_numbers() -> None:
    share, now = Halves(keep=True, last=0.75), adapter(0)
    kept = now.keys() - share.sent(now, offer(now)).keys()
    assert {key.removeprefix(lora.PREFIX).split(".lora")[0] for key in kept} == {"blocks.10", "conv", "grouped"}


def test_all_draw_one_increment_and_another_the_next_round() -> None:
    share, now = Increment("b"), adapter(0)
    one, two, other = share.like(now, 1, RANK), share.like(adapter(5, 4), 1, RANK), share.like(now, 2, RANK)
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not any(torch.equal(one[key], other[key]) for key in one if key.endswith(lora.A_END))


def test_an_increment_widens_the_adapter_up_to_its_limit() -> None:
    share, now = Increment("b", widest=6), adapter(0)
    ranks = []
    for turn in range(1, 5):
        whole = share.read(share.sent(trained(share, now, turn), offer(now, turn)), share.like(now, turn, RANK), turn)
        now = share.land(now, whole, turn)
        ranks.append(lora.rank(now))
    assert ranks == [4, 6, 6, 6]


@pytest.mark.parametrize("share", [Halves(half="b"), Increment("b"), Square()], ids=repr)
def test_what_is_missing_or_too_much_is_refused(share: Share) -> None:
    now = adapter(0)
    sent, like = share.sent(trained(share, now), offer(now)), share.like(now, 1, RANK)
    first = min(sent)
    for wrong in ({key: sent[key] for key in sent if key != first}, sent | {"more": torch.zeros(1)}):
        with pytest.raises(TreeError, match="update: wanted"):
            share.read(wrong, like, 1)


def test_a_square_of_the_wrong_shape_is_refused() -> None:
    share, now = Square(), adapter(0)
    sent = share.sent(trained(share, now), offer(now))
    with pytest.raises(TreeError, match=r"wanted a square factor of shape \(2, 2\), came \(3, 3\)"):
        share.read(sent | {min(sent): torch.zeros(3, 3)}, share.like(now, 1, RANK), 1)


def test_to_keep_something_something_must_stay() -> None:
    for half in ("both", "turns"):
        with pytest.raises(PlanError, match="keep: wanted a part that never travels"):
            Halves(half, keep=True)  # type: ignore[arg-type]
    assert replace(Halves("b"), keep=True).keep
    with pytest.raises(PlanError, match="half: 'none' leaves nothing to train"):
        Halves("none")


def test_who_presses_the_last_half_of_the_ranks_gives_it_up() -> None:
    share, now = Halves(prune=True), adapter(0, 4)
    front, back = factors.split(now, 2)
    longer = lora.product_sum([(1.0, front), (1.1, back)])
    shorter = lora.product_sum([(1.0, tree.scale(front, 2.0)), (0.9, back)])
    kept, pruned = (share.sent(own, replace(offer(now), rank=4)) for own in (longer, shorter))
    assert all(torch.equal(kept[key], longer[key]) for key in longer)
    wanted = factors.head(shorter, 2)
    assert all(torch.equal(pruned[key], wanted[key]) for key in pruned)


def test_pressing_is_the_slope_of_the_lengths_product() -> None:
    draw = torch.Generator().manual_seed(1)
    lines = torch.randn(3, 9, generator=draw).double().requires_grad_()
    tail_a, tail_b = torch.zeros(3, 9), torch.zeros(3, 9)
    tail_a[:, 1:3], tail_b[:, 6:9] = 1, 1
    loss = (lines * tail_a).norm(dim=1) * (lines * tail_b).norm(dim=1)
    (wanted,) = torch.autograd.grad(loss.sum(), lines)
    assert torch.allclose(pressing(lines.detach(), tail_a, tail_b), wanted)


def test_a_chart_of_everything_is_no_chart() -> None:
    lines = torch.randn(3, 5)
    assert Whole().up(Whole().down(lines)) is lines


def test_in_a_stack_the_last_moves() -> None:
    start = stacked([(0.5, adapter(1))], adapter(2), ends=(lora.A_END,))
    assert start.free is not None
    moves = {key: float(x.mean()) for key, x in start.free.items()}
    assert all(moves[key] == (0.5 if key.endswith(lora.B_END) else 0.0) for key in moves)
    assert near(start.adapter, lora.product_sum([(0.5, adapter(1)), (1.0, adapter(2))]))
