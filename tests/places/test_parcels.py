"""What crosses: offers and replies there and back, each tree once, and nothing believed that comes."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import pytest
import safetensors.torch
import torch

from fedgen import tree
from fedgen.devices import CLASSES
from fedgen.errors import ClientError, FedgenError
from fedgen.places.wire import (
    PROFILE,
    Errand,
    Parcel,
    Present,
    answered,
    introduced,
    offered,
    question,
    read_offers,
    read_present,
    read_replies,
)
from fedgen.records import GLOBAL, Failure, Offer, Reply, Tree, Update

ERRAND = Errand("tiny-0a1b", 'name = "tiny"', "s1", 3, 4)
MOST = 4096
TRAINED = {"loss": 1.25, "terms": 40, "steps": 3}
SCORE = {"loss": 30.0, "terms": 40, "words": 9, "bytes": 70}


def leaf(number: float) -> Tree:
    return {"a": torch.full((2, 3), float(number)), "b": torch.arange(4.0) + number}


def same(one: Tree, other: Tree) -> bool:
    return one.keys() == other.keys() and all(
        one[key].dtype == other[key].dtype and one[key].equal(other[key]) for key in one
    )


def scores(*names: str) -> dict[str, float]:
    return {f"{name}.{key}": value for name in names for key, value in SCORE.items()}


def reason(reply: Reply) -> str:
    """Why nothing came, in one line that does no harm."""
    assert isinstance(reply, Failure), reply
    assert reply.reason.isprintable()
    assert 0 < len(reply.reason) <= 500
    return reply.reason


TRAIN = Offer(5, "ann", GLOBAL, leaf(1))
CHECK, SCORED, ENCODE = (replace(TRAIN, use=use) for use in ("check", "score", "encode"))
UPDATE = Update(5, "ann", GLOBAL, leaf(2), 12, TRAINED)


# ---- there and back


def test_offers_there_and_back() -> None:
    shared, others = leaf(1), {"north": leaf(2), "south": leaf(3)}
    asked = [
        Offer(5, "ann", GLOBAL, shared, "train", others, 2),
        Offer(5, "bób ☃", "north", others["north"], "score", {GLOBAL: shared}),
        Offer(5, "cleo", GLOBAL, {}, "encode"),
        Offer(5, "dan", GLOBAL, leaf(1), "check"),  # another object of the same content
    ]
    parcel = offered(ERRAND, asked)
    assert len(parcel.trees) == 3, "a tree crosses once"
    assert parcel.size == len(parcel.words.encode()) + sum(len(raw) for raw in parcel.trees)
    errand, found = read_offers(parcel)
    assert errand == ERRAND
    assert found is not None
    for one, other in zip(found, asked, strict=True):
        assert vars(one) | {"adapter": 0, "beside": 0} == vars(other) | {"adapter": 0, "beside": 0}
        assert same(one.adapter, other.adapter)
        assert list(one.beside) == list(other.beside)
        assert all(same(one.beside[name], other.beside[name]) for name in other.beside)


def test_who_is_here_there_and_back() -> None:
    assert read_offers(question(ERRAND)) == (ERRAND, None)
    here = Present("ada", {"ann": 12, "bob": 1}, {"ann": "north"}, ("eve",), "0123", hardware=CLASSES["phone"])
    assert read_present(introduced(here)) == here
    away = Present("ada", {}, {}, reason="no model")
    assert read_present(introduced(away)) == away


def test_replies_there_and_back_in_any_order() -> None:
    taken = replace(TRAIN, client="bob", beside={"north": leaf(9)})
    asked = [TRAIN, taken, replace(ENCODE, client="cleo"), replace(SCORED, client="dan"), replace(CHECK, client="eve")]
    profile = torch.nn.functional.normalize(torch.arange(8.0).view(2, 4), dim=1)
    sent = [
        UPDATE,
        replace(UPDATE, client="bob", cluster="north", adapter=leaf(7)),
        Update(5, "cleo", GLOBAL, {}, 3, profile=profile),
        Update(5, "dan", GLOBAL, {}, 4, scores("backbone", GLOBAL, "personal")),
        Update(5, "eve", GLOBAL, {}, 4, scores(GLOBAL)),
    ]
    for order in (sent, sent[::-1]):
        parcel = answered(order)
        found = read_replies(parcel, asked, MOST)
        for one, other in zip(found, sent, strict=True):
            assert isinstance(one, Update), one
            drop: dict[str, Any] = {"adapter": 0, "profile": 0, "up": 0}
            assert vars(one) | drop == vars(other) | drop
            assert same(one.adapter, other.adapter)
        seen = found[2]
        assert isinstance(seen, Update)
        assert seen.profile is not None
        assert seen.profile.equal(profile)
        frame = len('{"replies": []}') + 2 * (len(sent) - 1)
        assert sum(one.up for one in found if isinstance(one, Update)) == parcel.size - frame
    lost = Failure(5, "ann", GLOBAL, "out of memory")
    assert read_replies(answered([lost]), [TRAIN], MOST) == [lost]


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_come_as_single(kind: torch.dtype) -> None:
    half = {key: (value / 3).to(kind) for key, value in leaf(2).items()}
    (found,) = read_replies(answered([replace(UPDATE, adapter=half)]), [TRAIN], MOST)
    assert isinstance(found, Update), found
    assert same(found.adapter, {key: value.float() for key, value in half.items()})


# ---- answers that are none


def own(**changes: Any) -> dict[str, Any]:
    """What an honest client says, with changes; None takes a key out."""
    said = {"round": 5, "client": "ann", "cluster": GLOBAL, "examples": 12, "metrics": TRAINED, "tree": 0} | changes
    return {key: value for key, value in said.items() if value is not None}


def reply_of(said: object, offer: Offer = TRAIN, trees: tuple[bytes, ...] = (tree.pack(leaf(2)),)) -> Reply:
    (found,) = read_replies(Parcel(json.dumps({"replies": [said]}), trees), [offer], MOST)
    return found


def test_the_honest_answer_of_these_tests_is_taken() -> None:
    assert isinstance(reply_of(own()), Update)
    assert isinstance(reply_of(own(metrics=scores(GLOBAL), tree=-1), CHECK), Update)
    assert isinstance(reply_of(own(metrics=scores("backbone", GLOBAL), tree=-1), SCORED), Update)


NONE = "the answer is none to what was asked"
WORDS = ["", "nonsense", "[]", "3", "null", '{"replies": 3}', '{"replies": {"client": 3}}', '{"replies": [3]}']
WORDS += ['{"replies": ["ann"]}', '{"replies": [{}]}', '{"replies": [{"client": []}]}', "[" * 10**5, "9" * 5000]
WORDS += ['{"replies": [{"client": "ann"}, {"client": "ann"}]}', '{"replies": [{"client": "ann"}]}', "{"]


@pytest.mark.parametrize("words", WORDS, ids=[words[:40] for words in WORDS])
def test_words_that_are_no_answer(words: str) -> None:
    for reply in read_replies(Parcel(words), [TRAIN, replace(TRAIN, client="bob")], MOST):
        assert reason(reply).startswith((NONE, "the answer is of other clients"))


BAD: list[tuple[dict[str, Any], str]] = [
    ({"round": 4}, "the answer is of round 4, wanted 5"),
    ({"round": "5"}, "the answer is of round 5, wanted 5"),
    ({"round": None}, NONE),
    ({"client": "bob"}, "the answer is of other clients"),
    ({"cluster": "north"}, "the answer is of cluster 'north', wanted 'global'"),
    ({"cluster": ["global"]}, "the answer is of cluster"),
    ({"cluster": "\x1b[2J\n" * 99}, "the answer is of cluster ' [2J"),
    ({"cluster": None}, NONE),
    ({"tree": 1}, NONE),
    ({"tree": 10**30}, NONE),
    ({"tree": -1}, "the answer is none to 'train'"),
    ({"tree": -(10**9)}, "the answer is none to 'train'"),
    ({"tree": 0.5}, NONE),
    ({"tree": "0"}, NONE),
    ({"tree": None}, NONE),
    ({"examples": 0}, "the answer is of 0 examples"),
    ({"examples": -3}, "the answer is of -3 examples"),
    ({"examples": "many"}, "the answer is of many examples"),
    ({"examples": 2.5}, "the answer is of 2.5 examples"),
    ({"examples": True}, "the answer is of True examples"),
    ({"examples": 10**18}, "the answer is of 1000000000000000000 examples"),
    ({"examples": 10**400}, "the answer is of 1000"),
    ({"examples": float("inf")}, "the answer is of inf examples"),
    ({"examples": None}, NONE),
    ({"metrics": {}}, "the answer is none to 'train'"),
    ({"metrics": {"loss": 1.0}}, "the answer is none to 'train'"),
    ({"metrics": None}, NONE),
    ({"metrics": [1.0]}, NONE),
    ({"reason": "\x1b]0;mine\x07\nfirst\r\u2028second" + "x" * 10**5}, " ]0;mine  first  second"),
    ({"reason": ["any"]}, "['any']"),
]
BAD += [
    ({"metrics": TRAINED | {key: value}}, NONE)
    for key in ("loss", "terms")
    for value in (float("nan"), float("inf"), -float("inf"), 10**400, 1e300, "1", None, True, [1.0])
]


@pytest.mark.parametrize(("changes", "wanted"), BAD, ids=[repr(changes)[:50] for changes, _ in BAD])
def test_an_answer_that_no_honest_client_sends(changes: dict[str, Any], wanted: str) -> None:
    assert reason(reply_of(own(**changes))).startswith(wanted)


def raw_of(kind: str, shape: list[int], size: int) -> bytes:
    """A safetensors file of one tensor of any kind."""
    head = json.dumps({"a": {"dtype": kind, "shape": shape, "data_offsets": [0, size]}}).encode()
    return len(head).to_bytes(8, "little") + head + bytes(size)


TREES = {
    "no safetensors": b"nothing of the kind",
    "cut short": tree.pack(leaf(2))[:-1],
    "too long": tree.pack(leaf(2)) + b"0",
    "a header that is all there is": b"\xff" * 8,
    "whole numbers": tree.pack({"a": torch.ones(2, 3, dtype=torch.int64)}),
    "yes and no": tree.pack({"a": torch.ones(2, 3, dtype=torch.bool)}),
    "complex": safetensors.torch.save({"a": torch.ones(2, dtype=torch.complex64)}),
    "no tensors": tree.pack({}),
    "an unknown kind": raw_of("F77", [2], 8),
    "a kind of four bits": raw_of("F4", [4], 2),
    "a shape that is not its bytes": raw_of("F32", [2**40], 8),
    "a shape below nothing": raw_of("F32", [-2], 8),
    "larger than may be": tree.pack({"a": torch.zeros(MOST)}),
}


@pytest.mark.parametrize("what", TREES)
def test_a_tree_that_no_honest_client_sends(what: str) -> None:
    said = reason(reply_of(own(), trees=(TREES[what],)))
    if what == "larger than may be":
        assert said.endswith("bytes, wanted at most 4,096")
    assert reason(reply_of(own(metrics={}), ENCODE, (TREES[what],)))


def test_a_hundred_megabytes_of_zeros_are_not_read() -> None:
    assert "bytes, wanted at most 4,096" in reason(reply_of(own(), trees=(bytes(10**8),)))
    many = {f"more {at}": 1.0 for at in range(1000)}
    assert "bytes, wanted at most 4,096" in reason(reply_of(own(metrics=TRAINED | many)))


HALF: list[tuple[Offer, dict[str, Any]]] = [
    (CHECK, {}),
    (CHECK, scores("north")),
    (CHECK, scores(GLOBAL, "north")),
    (SCORED, {}),
    (SCORED, scores(GLOBAL)),
    (SCORED, scores("backbone")),
    (SCORED, scores("backbone", GLOBAL, "whatever")),
    *((CHECK, {key: value for key, value in scores(GLOBAL).items() if key != f"{GLOBAL}.{part}"}) for part in SCORE),
    *((CHECK, scores(GLOBAL) | {f"{GLOBAL}.terms": value}) for value in (0, -3, 0.5, float("nan"))),
    (CHECK, scores(GLOBAL) | {"loss": 3.0}),
    (CHECK, TRAINED),
]


@pytest.mark.parametrize(("offer", "metrics"), HALF)
def test_scores_that_are_not_whole(offer: Offer, metrics: dict[str, float]) -> None:
    assert reason(reply_of(own(metrics=metrics, tree=-1), offer))


def test_scores_with_a_tree_are_refused() -> None:
    assert reason(reply_of(own(metrics=scores(GLOBAL)), CHECK)) == "the answer is none to 'check'"


PROFILES = [
    torch.zeros(1, 4), torch.ones(1, 4), torch.tensor([[0.0, 2.0], [0.0, 0.0]]), torch.ones(1), torch.zeros(0, 4),
    torch.full((1, 4), torch.nan), torch.full((1, 4), torch.inf), torch.zeros(1, 4, dtype=torch.int64),
    torch.ones(1, 1, 1),
]  # fmt: skip


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_that_is_none(profile: torch.Tensor) -> None:
    assert reason(reply_of(own(metrics={}), ENCODE, (tree.pack({PROFILE: profile}),)))
    assert reason(reply_of(own(metrics={}, tree=-1), ENCODE))


def test_one_bad_answer_leaves_the_others_as_they_are() -> None:
    said = [own(examples="many"), own(client="bob", tree=1)]
    parcel = Parcel(json.dumps({"replies": said}), (b"", tree.pack(leaf(7))))
    lost, found = read_replies(parcel, [TRAIN, replace(TRAIN, client="bob")], MOST)
    assert reason(lost)
    assert isinstance(found, Update)
    assert same(found.adapter, leaf(7))


@pytest.mark.parametrize(
    "words",
    [
        "nonsense", "[]", "{}", '{"present": 3}', '{"present": {}}', "[" * 10**5,
        *(
            json.dumps({"present": vars(Present("ada", {"ann": 3}, {})) | changes})
            for changes in (
                {"rows": {"ann": 0}}, {"rows": {"ann": float("inf")}}, {"rows": {"ann": "many"}}, {"rows": ["ann"]},
                {"rows": {"ann": 10**400}}, {"labels": 3}, {"dropped": None}, {"hardware": 3},
                *({"hardware": asdict(CLASSES["phone"]) | odd} for odd in (
                    {"kind": "fridge"}, {"kind": ["phone"]}, {"memory": 0}, {"memory": 10**400}, {"memory": 1.5},
                    {"speed": float("nan")}, {"up": float("inf")}, {"down": True}, {"lost": 2}, {"hours": [22]},
                    {"hours": [22, 25]}, {"rows": -1}, {"colour": "red"},
                )),
            )
        ),
    ],
)  # fmt: skip
def test_who_says_nonsense_of_itself(words: str) -> None:
    with pytest.raises(ClientError, match="node: wanted to know whom it holds, came something else"):
        read_present(Parcel(words))


def test_what_a_machine_says_of_itself_does_nothing_to_a_terminal() -> None:
    found = read_present(introduced(Present("\x1b[2Jada\n", {}, {}, reason="one\r\ntwo")))
    assert (found.name, found.reason) == (" [2Jada ", "one  two")


# ---- questions that are none


def asking(change: Callable[[dict[str, Any]], object]) -> Parcel:
    """A question with something in it changed."""
    parcel = offered(ERRAND, [replace(TRAIN, beside={"north": leaf(2)})])
    said = json.loads(parcel.words)
    change(said)
    return Parcel(json.dumps(said), parcel.trees)


ODD: list[dict[str, Any]] = [
    {"use": "read the disk"}, {"use": ["train"]}, {"use": None}, {"round": "5"}, {"round": 5.5}, {"round": True},
    {"client": 3}, {"client": ["ann"]}, {"cluster": {}}, {"rank": "8"}, {"rank": 2.0}, {"adapter": "0"},
    {"adapter": 2}, {"adapter": -2}, {"adapter": None}, {"beside": []}, {"beside": {"north": 7}}, {"more": 1},
]  # fmt: skip
ERRANDS: list[dict[str, Any]] = [
    {"run": 3}, {"run": None}, {"run": ["../.."]}, {"plan": {}}, {"session": 3}, {"base": "0"}, {"base": 1.5},
    {"done": None}, {"more": 1},
]  # fmt: skip


@pytest.mark.parametrize("changes", ODD)
def test_an_offer_that_is_none_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ClientError, match="parcel: wanted offers, came something else"):
        read_offers(asking(lambda said: said["offers"][0].update(changes)))


@pytest.mark.parametrize("changes", ERRANDS)
def test_an_errand_that_is_none_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ClientError, match="parcel: wanted offers, came something else"):
        read_offers(asking(lambda said: said["errand"].update(changes)))


def test_other_questions_that_are_none_are_refused() -> None:
    def twice(said: dict[str, Any]) -> None:
        said["offers"] *= 2

    for parcel in (
        Parcel("nonsense"), Parcel("[]"), Parcel("{}"), Parcel('{"errand": []}'), Parcel("[" * 10**5),
        asking(twice), asking(lambda said: said.update(offers=3)), asking(lambda said: said.update(offers={"a": 1})),
    ):  # fmt: skip
        with pytest.raises(ClientError, match="parcel: wanted offers, came something else"):
            read_offers(parcel)
    with pytest.raises(FedgenError, match="offer: wanted whole safetensors"):
        read_offers(replace(asking(lambda said: None), trees=(b"0", b"1")))
