"""The bank alone: how trees lie in lines, what a slot takes, whose rows meet which line, and what is left behind."""

import pytest
import torch
from torch import Tensor, nn

from fedgen import lora
from fedgen.bank import Bank
from fedgen.errors import BackboneError, TreeError
from fedgen.records import Tree

RANK, GROUPED = 4, "conv"
NAMES = ["first", "last", GROUPED]


class Net(nn.Module):
    """Two linear layers and a grouped convolution, in one line."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.conv, self.last = nn.Linear(6, 8), nn.Conv2d(2, 4, 3, padding=1, groups=2), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        """x [rows, 6]."""
        return self.last(self.conv(self.first(x).view(-1, 2, 2, 2)).flatten(1))


def made() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net()


LAYERS = lora.targets(made(), NAMES)


@pytest.fixture
def network() -> Net:
    return made()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(6, 6, generator=torch.Generator().manual_seed(1))


def adapter(rank: int, seed: int) -> Tree:
    """An adapter that changes something."""
    draw = torch.Generator().manual_seed(seed)
    tree = lora.fresh(LAYERS, rank, draw)
    return {key: value + 0.3 * torch.randn(value.shape, generator=draw) for key, value in tree.items()}


def same(a: Tree, b: Tree) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("rank", [2, 4])
def test_a_slot_gives_back_what_was_written_at_its_own_rank(network: Net, rank: int) -> None:
    bank, tree = Bank(network, NAMES, RANK, slots=2), adapter(rank, 1)
    bank.write(2, tree)
    assert same(bank.read(2), tree)
    assert not bank.lines[:2].any()


def test_reading_gives_a_copy(network: Net) -> None:
    bank = Bank(network, NAMES, RANK, slots=1)
    bank.write(1, adapter(RANK, 1))
    before = bank.lines.clone()
    for value in bank.read(1).values():
        value.zero_()
    assert torch.equal(bank.lines, before)


def test_a_narrow_adapter_overwrites_a_wide_one_whole(network: Net, x: Tensor) -> None:
    wide, narrow = adapter(4, 1), adapter(2, 2)
    bank = Bank(network, NAMES, RANK, slots=2)
    bank.write(1, narrow)
    bank.write(2, wide)
    bank.write(2, narrow)
    assert torch.equal(bank.lines[1], bank.lines[2])
    assert int((bank.lines[2] != 0).sum()) == sum(value.numel() for value in narrow.values())  # padding is zeros


def test_a_layout_takes_factors_that_do_not_lie_in_one_piece(network: Net) -> None:
    layout, tree = Bank(network, NAMES, RANK).layout, adapter(RANK, 1)
    scattered = {key: value.transpose(0, 1).contiguous().transpose(0, 1) for key, value in tree.items()}
    assert torch.equal(layout.vector(scattered), layout.vector(tree))
    assert layout.width == sum(value.numel() for value in tree.values())


def test_a_layout_takes_keys_in_any_order(network: Net) -> None:
    layout, tree = Bank(network, NAMES, RANK).layout, adapter(RANK, 1)
    assert torch.equal(layout.vector(dict(reversed(tree.items()))), layout.vector(tree))


@pytest.mark.parametrize("slot", [0, 3, -1])
def test_slot_0_stays_the_backbone_and_there_are_no_others(network: Net, slot: int) -> None:
    bank = Bank(network, NAMES, RANK, slots=2)
    with pytest.raises(TreeError, match=f"slot {slot} cannot be written, wanted 1 to 2"):
        bank.write(slot, adapter(RANK, 1))


def test_an_adapter_that_does_not_fit_is_refused_with_the_layer(network: Net) -> None:
    tree, wide = adapter(RANK, 1), adapter(6, 1)
    bank = Bank(network, NAMES, RANK, slots=1)
    less = {key: value for key, value in tree.items() if ".last." not in key}
    odd = dict(tree) | {f"{lora.PREFIX}first.lora_A.weight": torch.zeros(RANK, 7)}
    flat = dict(tree) | {f"{lora.PREFIX}conv.lora_A.weight": torch.zeros(4, 2, 3, 3)}
    flat |= {f"{lora.PREFIX}conv.lora_B.weight": torch.zeros(4, 4, 1, 1)}  # fits itself, but knows of no groups
    for wrong, said in ((less, "'last'"), (wide, "rank 6 does not fit"), (odd, "'first'"), (flat, "'conv'")):
        with pytest.raises(TreeError, match=said):
            bank.write(1, wrong)
    assert not bank.lines.any()


def test_a_fresh_adapter_changes_nothing_and_is_its_generators(network: Net, x: Tensor) -> None:
    bare = network(x)
    bank = Bank(network, NAMES, RANK, slots=1)
    one, two, other = (bank.fresh(torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert same(one, two)
    assert not same(one, other)
    bank.write(1, one)
    with bank.rows(torch.ones(6, dtype=torch.long)):
        assert torch.equal(network(x), bare)


def test_each_row_goes_its_own_way(network: Net, x: Tensor) -> None:
    bank = Bank(network, NAMES, RANK, slots=2)
    for slot in (1, 2):
        bank.write(slot, adapter(2 * slot, slot))
    slots = torch.tensor([2, 0, 1, 1, 0, 2])
    with bank.rows(slots):
        mixed = network(x)
    for at, slot in enumerate(slots):
        with bank.rows(slot[None]):
            alone = network(x[at : at + 1])
        assert (mixed[at] - alone[0]).abs().max() < 1e-6
    assert (mixed[0] - mixed[1]).abs().max() > 0.01


def test_groups_of_rows_share_a_line(network: Net, x: Tensor) -> None:
    bank = Bank(network, NAMES, RANK, slots=2)
    for slot in (1, 2):
        bank.write(slot, adapter(RANK, slot))
    with bank.carry(bank.lines[[2, 0, 1]]):
        grouped = network(x)
    with bank.rows(torch.tensor([2, 2, 0, 0, 1, 1])):
        assert (grouped - network(x)).abs().max() < 1e-6


def test_a_mixture_of_one_is_that_one_and_of_nothing_the_backbone(network: Net, x: Tensor) -> None:
    bare = network(x)
    bank = Bank(network, NAMES, RANK, slots=2)
    for slot in (1, 2):
        bank.write(slot, adapter(2 * slot, slot))
    both = torch.tensor([[1, 2]]).expand(6, 2)
    with bank.rows(both, torch.tensor([[0.0, 1.0]]).expand(6, 2)):
        second = network(x)
    with bank.rows(both, torch.zeros(6, 2)):
        none = network(x)
    with bank.rows(torch.full((6,), 2)):
        assert (second - network(x)).abs().max() < 1e-6
    assert torch.equal(none, bare)


def test_a_line_learns_from_its_own_rows_alone(network: Net, x: Tensor) -> None:
    bank = Bank(network, NAMES, RANK)
    lines = torch.stack([bank.layout.vector(adapter(RANK, seed)) for seed in (1, 2, 3)]).requires_grad_()
    with bank.carry(lines):
        loss = network(x)[2:4].square().sum()  # the second line's rows
    loss.backward()
    assert lines.grad is not None
    assert lines.grad[1].any()
    assert not lines.grad[[0, 2]].any()
    assert all(weight.grad is None for weight in network.parameters())


def test_dropout_touches_the_adapters_input_and_nothing_else(network: Net, x: Tensor) -> None:
    bare = network(x)
    bank = Bank(network, NAMES, RANK)
    line = bank.layout.vector(adapter(RANK, 1))[None]
    seen = []

    def all_of_it(rows: Tensor) -> Tensor:
        seen.append(rows.shape)
        return torch.zeros_like(rows)

    with bank.carry(line, drop=all_of_it):
        assert torch.equal(network(x), bare)
    assert [len(shape) for shape in seen] == [3, 5, 3]
    with bank.carry(line):
        assert not torch.allclose(network(x), bare)


def test_nothing_stays_behind_after_an_error(network: Net, x: Tensor) -> None:
    bare = network(x)
    bank = Bank(network, NAMES, RANK, slots=1)
    bank.write(1, adapter(RANK, 1))

    def interrupted() -> None:
        with bank.rows(torch.ones(6, dtype=torch.long)):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert torch.equal(network(x), bare)


def test_close_puts_the_very_same_layers_back_even_after_an_error(network: Net) -> None:
    layers = dict(network.named_modules())

    def interrupted() -> None:
        with Bank(network, NAMES, RANK):
            assert network.first is not layers["first"]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    after = dict(network.named_modules())
    assert list(after) == list(layers)
    assert all(after[path] is layer for path, layer in layers.items())


def test_what_cannot_be_adapted_leaves_the_network_as_it_was(network: Net) -> None:
    layers = dict(network.named_modules())
    for names, rank, said in ((["middle"], 4, "'middle'"), (NAMES, 3, "2 groups"), (NAMES, 0, "at least 1")):
        with pytest.raises(BackboneError, match=said):
            Bank(network, names, rank)
    assert dict(network.named_modules()) == layers


def test_a_second_bank_on_the_same_layers_is_refused_until_the_first_is_closed(network: Net) -> None:
    with Bank(network, NAMES, RANK), pytest.raises(BackboneError, match="layer of type Lane"):
        Bank(network, ["last"], RANK)
    Bank(network, ["last"], RANK).close()
