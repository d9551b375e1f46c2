"""Which machines are there: who is let in, who is not and why, and the census of a run."""

import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pytest

from fedgen.devices import CLASSES
from fedgen.errors import ClientError
from fedgen.places import roll, wire
from fedgen.places.roll import Arrived, Noticed, Roll
from fedgen.places.wire import Errand, Parcel, Present
from fedgen.plan import Fleet

ERRAND = Errand("tiny-0a1b", "", "one")
HASH = "0123456789abcdef" * 4


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks follow each other without a pause."""
    monkeypatch.setattr(roll, "LOOK", 0.0)
    monkeypatch.setattr(roll, "NAP", 0.005)


@dataclass
class Letters:
    """Nodes that answer at once with what they are to say: a parcel, why there is none, or nothing at all."""

    says: dict[int, Parcel | str | None]
    online: set[int] = field(default_factory=set)
    asked: list[int] = field(default_factory=list)
    gone: set[int] = field(default_factory=set)  # nodes that go away over their next question
    under_way: dict[str, int] = field(default_factory=dict)
    closed: int = 0  # so many questions are not taken

    def __post_init__(self) -> None:
        self.online = self.online or set(self.says)

    def nodes(self) -> set[int]:
        return set(self.online)

    def send(self, node: int, parcel: Parcel, use: str, turn: int) -> str:
        assert (wire.read_offers(parcel), use, turn) == ((ERRAND, None), "meet", 0)
        if self.closed:
            self.closed -= 1
            return ""
        self.asked.append(node)
        self.under_way[f"t{len(self.asked)}"] = node
        return f"t{len(self.asked)}"

    def arrived(self, tickets: Sequence[str]) -> list[Arrived]:
        found = []
        for ticket in tickets:
            node = self.under_way[ticket]
            said = self.says[node]
            if node in self.gone:
                self.gone.discard(node)
                found.append(Arrived(ticket, None, "node unavailable", gone=True))
            elif said is not None:
                found.append(Arrived(ticket, None, said) if isinstance(said, str) else Arrived(ticket, said))
        return found


def holds(name: str, *clients: str, **changes: Any) -> Parcel:
    """What a node says that holds these clients."""
    made = Present(name, {client: 10 * at for at, client in enumerate(clients, 1)}, {}, backbone=HASH)
    return wire.introduced(replace(made, **changes))


def gathered(post: Letters, nodes: int, patience: float = 5.0) -> tuple[Roll, list[str]]:
    told: list[str] = []

    def tell(event: object) -> None:
        assert isinstance(event, Noticed)
        told.append(event.said)

    found = Roll(post, ERRAND, Fleet(nodes=nodes, patience=patience), HASH, tell)
    found.gather()
    return found, told


def refused(post: Letters, nodes: int = 1) -> str:
    with pytest.raises(ClientError) as caught:
        gathered(post, nodes, 0.05)
    return str(caught.value)


def test_the_census_of_those_who_are_here() -> None:
    first = holds("ada", "ann", "bob", labels={"ann": "north"}, dropped=("zoe",), hardware=CLASSES["board"])
    post = Letters({1: first, 2: holds("eve", "cleo", dropped=("yan",)), 3: holds("no", "dan", reason="not today")})
    found, told = gathered(post, 2)
    found.look()
    board = asdict(CLASSES["board"])
    assert found.census() == {
        "sizes": {"ann": 10, "bob": 20, "cleo": 10},
        "labels": {"ann": "north"},
        "dropped": ["yan", "zoe"],
        "hardware": {"ann": board, "bob": board},
    }
    assert found.kinds() == {"1": "board"}
    assert sorted(told) == [
        "node 'ada' holds ann, bob on a board",
        "node 'eve' holds cleo",
        "node 'no' takes no part: not today",
    ]
    assert post.asked == [1, 2, 3], "each is asked once"
    assert [found.at(name) for name in ("ann", "bob", "cleo", "dan", "nobody")] == [1, 1, 2, None, None]


def test_one_that_goes_offline_is_not_reached_until_it_is_back() -> None:
    post = Letters({1: holds("ada", "ann")})
    found, told = gathered(post, 1)
    post.online.clear()
    found.look()
    assert found.at("ann") is None
    post.online.add(1)
    found.look()
    assert found.at("ann") == 1
    assert told[1:] == ["node 'ada' is offline", "node 'ada' is online again"]
    assert post.asked == [1]


def test_a_client_that_is_on_another_node_already_is_refused() -> None:
    post = Letters({1: holds("ada", "ann"), 2: holds("ada", "ann", "bob")})
    found, told = gathered(post, 1)
    found.look()
    why = "client 'ann' is on another node already; give each device's node.toml a name of its own"
    assert told == ["node 'ada' holds ann", f"node 'ada' takes no part: {why}"]
    assert (found.at("ann"), found.at("bob")) == (1, None)
    assert found.census()["sizes"] == {"ann": 10}
    assert why in refused(post, 2)


def test_another_backbone_takes_no_part() -> None:
    line = refused(Letters({1: holds("ada", "ann", backbone="fedcba98" * 8)}))
    assert "node 'ada' takes no part: its backbone is fedcba98fedcba98, wanted 0123456789abcdef" in line
    assert "give it the same model" in line


def test_garbage_takes_no_part_and_the_others_do() -> None:
    post = Letters({1: Parcel("nonsense"), 2: "the app\ncrashed\x1b[2J", 3: holds("eve", "cleo")})
    found, told = gathered(post, 1)
    assert found.census()["sizes"] == {"cleo": 10}
    assert told[0].startswith("node '1' takes no part: node: wanted to know whom it holds, came something else")
    assert told[1:] == ["node '2' takes no part: the app crashed [2J", "node 'eve' holds cleo"]
    assert all(said.isprintable() for said in told)


def test_a_name_that_would_play_with_the_terminal_does_not() -> None:
    _, told = gathered(Letters({1: holds("\x1b[2Jada\n", "ann")}), 1)
    assert told == ["node ' [2Jada ' holds ann"]


@pytest.mark.parametrize("name", ["ann\n2000-01-01", "\x1b[2J", "\ud800", "a" * 501])
def test_a_client_whose_name_cannot_be_written_down_takes_no_part(name: str) -> None:
    assert "without a name that can be read" in refused(Letters({1: holds("ada", name)}))


def test_all_who_are_online_at_the_start_are_heard() -> None:
    post = Letters({1: holds("ada", "ann"), 2: None, 3: holds("eve", "cleo")})
    threading.Timer(0.3, lambda: post.says.update({2: holds("bob", "bob")})).start()
    found, _ = gathered(post, 1)
    assert sorted(found.census()["sizes"]) == ["ann", "bob", "cleo"]


def test_a_run_that_goes_on_waits_for_its_clients_but_not_for_ever() -> None:
    post = Letters({1: holds("ada", "ann"), 2: holds("eve", "cleo")}, online={1})
    told: list[str] = []
    found = Roll(post, ERRAND, Fleet(nodes=1, patience=1.0), HASH, lambda event: told.append(event.said))
    threading.Timer(0.2, lambda: post.online.add(2)).start()
    found.gather(["ann", "cleo", "zoe"])
    assert found.home == {"ann": 1, "cleo": 2}
    assert told[-1] == "going on with 2 nodes, without zoe"


def test_one_that_takes_no_part_is_asked_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roll, "AGAIN", 0.0)
    monkeypatch.setattr(roll, "LOOK", 0.0)
    post = Letters({1: holds("ada", "ann", reason="not today"), 2: holds("eve", "cleo")})
    found, told = gathered(post, 1)
    post.says[1] = holds("ada", "ann")
    for _ in range(4):
        found.look()
    assert found.at("ann") == 1
    assert told.count("node 'ada' takes no part: not today") == 1


def test_one_that_went_away_over_the_question_is_asked_again() -> None:
    post = Letters({1: holds("ada", "ann")}, gone={1})
    found, _ = gathered(post, 1)
    assert post.asked == [1, 1]
    assert found.at("ann") == 1


def test_a_question_that_cannot_be_sent_is_sent_later() -> None:
    found, _ = gathered(Letters({1: holds("ada", "ann")}, closed=2), 1)
    assert found.at("ann") == 1


def test_without_nodes_it_waits_with_a_word_then_says_what_to_do() -> None:
    told: list[object] = []
    began = time.monotonic()
    with pytest.raises(ClientError) as caught:
        Roll(Letters({}), ERRAND, Fleet(nodes=2, patience=0.1), HASH, told.append).gather()
    assert 0.1 <= time.monotonic() - began < 3
    assert told == [Noticed("no node is online; waiting 0.1 s for one")]
    assert str(caught.value) == (
        "fleet: wanted 2 nodes within 0.1 s, came 0; "
        "start nodes with `fedgen fleet join`, and see `fedgen fleet status`"
    )


def test_nodes_that_say_nothing_are_counted() -> None:
    line = refused(Letters({1: None, 2: None, 3: holds("ada", "ann")}), 2)
    assert "wanted 2 nodes within 0.05 s, came 1 (2 online have not answered yet); " in line
