"""Names that last: an old cluster keeps its name, a new one gets a number that none has had."""

import torch

from fedgen.cluster import named
from fedgen.records import GLOBAL

CLIENTS = list("abcdef")


def test_the_first_names_are_numbered_from_1() -> None:
    found = named(torch.tensor([1, 0, 0, 2]), "abcd", {})
    assert found == {"a": "cluster-2", "b": "cluster-1", "c": "cluster-1", "d": "cluster-3"}


def test_the_same_clusters_under_other_numbers_keep_their_names() -> None:
    before = named(torch.tensor([0, 0, 1, 1, 2, 2]), CLIENTS, {})
    assert named(torch.tensor([2, 2, 0, 0, 1, 1]), CLIENTS, before, set(before.values())) == before


def test_a_client_that_changes_its_taste_moves() -> None:
    before = named(torch.tensor([0, 0, 0, 1, 1, 1]), CLIENTS, {})
    after = named(torch.tensor([1, 1, 0, 0, 0, 0]), CLIENTS, before)
    assert after == before | {"c": "cluster-2"}


def test_of_all_ways_to_match_the_one_with_most_left_in_place() -> None:
    """The first old cluster shares 2 with new 0 and 2 with new 1, the second only shares with new 1."""
    before = dict(zip("abcdefg", ["cluster-1"] * 4 + ["cluster-2"] * 3, strict=True))
    after = named(torch.tensor([0, 0, 1, 1, 1, 1, 1]), "abcdefg", before)
    assert after == before | {"c": "cluster-2", "d": "cluster-2"}


def test_a_split_names_the_smaller_half_anew() -> None:
    before = dict.fromkeys(CLIENTS, "cluster-1")
    after = named(torch.tensor([0, 0, 1, 1, 1, 1]), CLIENTS, before)
    assert after == {name: "cluster-2" if name in "ab" else "cluster-1" for name in CLIENTS}


def test_a_number_is_never_given_twice() -> None:
    taken = {GLOBAL, "cluster-1", "cluster-2", "cluster-7"}  # 7 was merged away
    after = named(torch.tensor([0, 0, 1, 1]), "abcd", {"a": "cluster-2", "b": "cluster-2"}, taken)
    assert after == {"a": "cluster-2", "b": "cluster-2", "c": "cluster-8", "d": "cluster-8"}
    assert named(torch.tensor([0]), "z", {"a": "cluster-4"})["z"] == "cluster-5"  # those before are taken, too


def test_a_cluster_named_by_its_label_keeps_that_name() -> None:
    assert named(torch.tensor([0, 1]), "ab", {"a": "cluster-bold"}) == {"a": "cluster-bold", "b": "cluster-1"}


def test_clients_that_are_gone_and_clients_that_are_new() -> None:
    before = {"gone": "cluster-3", "a": "cluster-1", "b": "cluster-2"}
    after = named(torch.tensor([0, 1, 1]), ["a", "b", "new"], before, before.values())
    assert after == {"a": "cluster-1", "b": "cluster-2", "new": "cluster-2"}


def test_the_global_adapter_s_name_is_given_to_no_cluster() -> None:
    assert named(torch.tensor([0, 0]), "ab", dict.fromkeys("ab", GLOBAL)) == dict.fromkeys("ab", "cluster-1")


def test_a_client_of_several_rows_is_where_its_first_one_is() -> None:
    assert named(torch.tensor([1, 0, 0]), ["a", "a", "b"], {}) == {"a": "cluster-2", "b": "cluster-1"}


def test_the_order_of_clients_leaves_no_trace() -> None:
    labels, before = (
        torch.tensor([0, 0, 1, 1, 2, 2]),
        {name: f"cluster-{at % 2 + 1}" for at, name in enumerate(CLIENTS)},
    )
    wanted = named(labels, CLIENTS, before)
    for seed in range(5):
        order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
        assert named(labels[order], [CLIENTS[at] for at in order], before) == wanted
