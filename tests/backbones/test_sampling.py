"""The next token by its numbers: the likeliest, by chance, and by chance among the likeliest."""

import pytest
import torch
from torch import Tensor

from fedgen.backbones.sampling import Taste, choose

LOGITS = torch.tensor([0.0, 2.0, 1.0, -5.0])
MANY = 4000


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shares(logits: Tensor, **settings: float) -> Tensor:
    """How often each token is chosen in many tries."""
    taste = Taste(draw(), **settings)
    picks = torch.tensor([choose(logits[None], [taste])[0] for _ in range(MANY)])
    return torch.bincount(picks, minlength=len(logits)) / MANY


def test_without_temperature_it_is_the_likeliest() -> None:
    assert choose(LOGITS[None], [Taste(draw())]) == [1]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_by_chance_each_comes_as_often_as_its_share(temperature: float) -> None:
    found = shares(LOGITS, temperature=temperature)
    assert (found - (LOGITS / temperature).softmax(0)).abs().max() < 0.03


@pytest.mark.parametrize("temperature", [0.01, 1e-300])
def test_almost_without_temperature_it_is_the_likeliest(temperature: float) -> None:
    assert shares(LOGITS, temperature=temperature).tolist() == [0, 1, 0, 0]


def test_top_p_leaves_the_fewest_that_hold_so_much() -> None:
    whole = LOGITS.softmax(0)  # 0.09, 0.66, 0.24, 0.00
    found = shares(LOGITS, temperature=1.0, top_p=0.7)
    kept = torch.where(whole > 0.2, whole, 0)
    assert (found - kept / kept.sum()).abs().max() < 0.03
    assert found[[0, 3]].tolist() == [0, 0]
    assert shares(LOGITS, temperature=1.0, top_p=0.65)[1] == 1
    assert shares(LOGITS, temperature=1.0, top_p=1e-9)[1] == 1


def test_equals_stay_together_in_top_p() -> None:
    assert (shares(torch.zeros(4), temperature=1.0, top_p=0.3) > 0.2).all()


def test_a_rows_choice_is_its_own() -> None:
    logits = torch.randn(5, 50, generator=draw(3))
    settings = [(0.0, 1.0), (1.0, 1.0), (2.0, 0.5), (0.7, 1.0), (1.0, 0.9)]
    crowd = [Taste(draw(at), *setting) for at, setting in enumerate(settings)]
    together = [choose(logits, crowd) for _ in range(20)]
    for at, setting in enumerate(settings):
        taste = Taste(draw(at), *setting)
        assert [choose(logits[at : at + 1], [taste])[0] for _ in range(20)] == [picks[at] for picks in together]


def test_tokens_that_cannot_be_never_come() -> None:
    assert shares(torch.tensor([-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]), temperature=9.0)[[0, 2, 4]].sum() == 0


@pytest.mark.parametrize("odd", [torch.nan, torch.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_that_is_no_numbers_has_no_next_token(odd: float, temperature: float) -> None:
    logits = torch.stack([LOGITS, LOGITS.index_fill(0, torch.tensor([2]), odd)])
    assert choose(logits, [Taste(draw()), Taste(draw(), temperature)]) == [1, -1]
