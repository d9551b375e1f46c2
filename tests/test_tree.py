"""Arithmetic on trees, and the sum that does not care in which order they come."""

import itertools
import math

import pytest
import torch

from fedgen import tree
from fedgen.errors import TreeError
from fedgen.records import Tree


def make(seed: int, size: float = 1.0) -> Tree:
    draw = torch.Generator().manual_seed(seed)
    return {"b": torch.randn(3, 4, generator=draw) * size, "a": torch.randn(5, generator=draw) * size}


def test_check_names_the_key_and_what_is_wrong() -> None:
    like = make(0)
    with pytest.raises(TreeError, match="here: 'a' is missing"):
        tree.check({"b": like["b"]}, like, "here")
    with pytest.raises(TreeError, match=r"here: 'b' has shape \(4, 3\), wanted \(3, 4\)"):
        tree.check(like | {"b": like["b"].T}, like, "here")
    with pytest.raises(TreeError, match="here: 'c' is not expected"):
        tree.check(like | {"c": like["a"]}, like, "here")


def test_add_and_scale_are_the_arithmetic_of_their_tensors() -> None:
    a, b = make(0), make(1)
    added = tree.add(a, b, -0.5)
    for key in a:
        assert torch.equal(added[key], a[key] - 0.5 * b[key])
        assert torch.equal(tree.scale(a, 3.0)[key], a[key] * 3)
        assert not tree.zeros(a)[key].any()


def test_norm_and_clip_are_of_the_whole_tree() -> None:
    one = make(0)
    line = torch.cat([one["b"].flatten(), one["a"]]).double()
    assert tree.norm(one) == pytest.approx(float(line.norm()), rel=1e-12)
    short = tree.clip(one, 0.5)
    assert tree.norm(short) == pytest.approx(0.5, rel=1e-6)
    assert torch.allclose(short["a"] / one["a"], torch.full((5,), 0.5 / tree.norm(one)))
    assert tree.clip(one, 100.0) is one


def test_finite_sees_one_bad_number() -> None:
    one = make(0)
    assert tree.is_finite(one)
    one["a"][3] = math.inf
    assert not tree.is_finite(one)


def test_flatten_and_back() -> None:
    one = make(0)
    line = tree.flatten(one)
    assert line.shape == (tree.size(one),) == (17,)
    back = tree.unflatten(line, one)
    assert all(torch.equal(back[key], one[key]) for key in one)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int8])
def test_pack_and_back(dtype: torch.dtype) -> None:
    one = {key: (value * 10).to(dtype) for key, value in make(0).items()}
    one["t"] = one["b"].T  # not contiguous
    back, notes = tree.unpack(tree.pack(one, {"round": "7", "who": "zoë"}))
    assert notes == {"round": "7", "who": "zoë"}
    assert {key: value.dtype for key, value in back.items()} == dict.fromkeys(one, dtype)
    assert all(torch.equal(back[key], one[key]) for key in one)
    assert tree.unpack(tree.pack(one))[1] == {}


@pytest.mark.parametrize("keep", [0, 4, 8, 20, 100, -1])
def test_a_message_that_was_cut_short_is_refused(keep: int) -> None:
    raw = tree.pack(make(0), {"round": "7"})
    with pytest.raises(TreeError, match="from alice: wanted whole safetensors, came"):
        tree.unpack(raw[:keep], "from alice")


def test_digest_is_of_keys_and_numbers_and_nothing_else() -> None:
    one = make(0)
    name = tree.digest(one)
    assert name == tree.digest(dict(reversed(one.items())))
    assert name == tree.digest({key: value.clone() for key, value in one.items()})
    assert name != tree.digest({"c" if key == "a" else key: value for key, value in one.items()})
    one["a"][0] = torch.nextafter(one["a"][0], torch.tensor(9.0))
    assert name != tree.digest(one)


def test_a_sum_is_blind_to_the_order_of_arrival() -> None:
    parts = [(make(seed, 10.0**seed), weight) for seed, weight in enumerate((3.0, 0.1, 7.0, 1e-3))]
    found = []
    for order in itertools.permutations(parts):
        total = tree.Sum()
        for part, weight in order:
            total.add(part, weight)
        found.append(total.mean())
    assert len(found) == 24
    assert all(torch.equal(other[key], found[0][key]) for other in found for key in found[0])


def test_a_mean_is_the_mean_in_double() -> None:
    parts = [(make(seed), float(weight)) for seed, weight in enumerate((120, 7, 55))]
    total = tree.Sum()
    for part, weight in parts:
        total.add(part, weight)
    assert total.weight == 182.0
    mean = total.mean()
    for key in mean:
        wanted = sum(part[key].double() * weight for part, weight in parts) / 182
        assert mean[key].dtype == torch.float32
        # a step of 2**-32 a part, and the rounding to float32 at the end
        assert (mean[key].double() - wanted).abs().max() <= 2**-32 + 2**-24 * wanted.abs().max()


def test_the_mean_of_one_is_itself() -> None:
    one, total = make(0), tree.Sum()
    total.add(one, 13.0)
    mean = total.mean()
    assert list(mean) == list(one)
    assert all((mean[key] - one[key]).abs().max() <= 2**-31 for key in one)


def test_a_sum_keeps_the_type_of_its_parts() -> None:
    total = tree.Sum()
    total.add({"a": torch.ones(3, dtype=torch.float16)}, 2.0)
    assert total.mean()["a"].dtype == torch.float16


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e12])
def test_a_sum_refuses_what_it_cannot_hold(bad: float) -> None:
    for values in ({"a": torch.tensor([0.0, bad])}, {"a": torch.zeros(2), "b": torch.tensor([bad])}):
        with pytest.raises(TreeError, match="can be summed exactly"):
            tree.Sum().add(values, 1.0)


def test_a_sum_refuses_a_tree_of_other_layers_and_an_empty_mean() -> None:
    total = tree.Sum()
    with pytest.raises(TreeError, match="nothing was added"):
        total.mean()
    total.add(make(0), 1.0)
    with pytest.raises(TreeError, match="'a' is missing"):
        total.add({"b": make(0)["b"]}, 1.0)
