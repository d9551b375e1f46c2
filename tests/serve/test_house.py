"""From a name to a course of adapters, over the house that the tests of this folder serve."""

from dataclasses import replace

import pytest

from fedgen.errors import ClosedError, ServeError, UnknownError
from fedgen.serve.house import House, Limits, Stand, open_house
from fedgen.serve.keys import Who

ANN, NOBODY = Who("ann", frozenset({"ann"})), Who("nobody")
# What is served is shared with a running server, so nothing here changes it; `server` starts it.


@pytest.fixture
def stand(server: object, house: House) -> Stand:
    return house.stands["stories"]


def test_a_name_is_one_adapter(stand: Stand) -> None:
    taken = stand.take("global", NOBODY)
    assert [(until, list(mixed.values())) for until, mixed in taken.course] == [(1.0, [1.0])]
    assert [entry.name for entry in taken.entries] == ["global"]
    assert (taken.model, taken.note) == ("global", "")


def test_two_names_of_one_content_add_up(stand: Stand) -> None:
    taken = stand.take("global=0.5,global@round-2=0.25", NOBODY)
    [(_, mixed)] = taken.course
    assert list(mixed.values()) == [0.75]
    assert len(taken.entries) == 2


def test_a_mixture_may_come_apart_from_the_name(stand: Stand) -> None:
    taken = stand.take("", NOBODY, mix={"cluster-1": 0.7, "cluster-2": 0.3})
    assert taken.model == "cluster-1=0.7,cluster-2=0.3"
    assert sorted(taken.course[0][1].values()) == [0.3, 0.7]


def test_at_most_four_at_once(stand: Stand) -> None:
    names = ["backbone", "global", "cluster-1", "cluster-2", "global@round-1"]
    with pytest.raises(ServeError, match="wanted at most 4 adapters in one answer, came 5"):
        stand.take(",".join(f"{name}=1" for name in names), NOBODY)


def test_text_takes_no_turns(stand: Stand, house: House) -> None:
    with pytest.raises(ServeError, match="between the steps of a picture alone"):
        stand.take("global until 0.5 then backbone", NOBODY)
    taken = house.stands["digits"].take("global until 0.5 then backbone", NOBODY)
    assert [until for until, _ in taken.course] == [0.5, 1.0]


def test_what_is_not_there_is_an_error_and_never_the_backbone(stand: Stand) -> None:
    for who, name in ((NOBODY, "user/ann"), (ANN, "user/bob"), (ANN, "user/nobody"), (ANN, "globl")):
        with pytest.raises(UnknownError, match="is not here"):
            stand.take(name, who)
        with pytest.raises(UnknownError, match="is not here"):
            stand.take(f"global=0.5,{name}=0.5", who)


def test_a_fallback_is_taken_when_asked_for_and_said(stand: Stand) -> None:
    own = stand.run.clusters["uses"]["ann"]
    here = stand.take("user/ann", ANN, fallback=True)
    assert (here.model, here.note) == ("user/ann", "")
    gone = stand.take("user/ann@round-9", ANN, fallback=True)
    assert (gone.model, gone.note) == (own, f"'user/ann@round-9' is not here; answered under '{own}'")
    assert stand.take("user/ann", NOBODY, fallback=True).model == "global"
    assert stand.take("user/nobody", NOBODY, fallback=True).model == "global"
    with pytest.raises(UnknownError):
        stand.take("user/nobody=0.5,global=0.5", NOBODY, fallback=True)


def test_runs_are_told_apart_by_what_they_make_and_by_name(server: object, house: House) -> None:
    assert house.stand("text", "global")[0].name == "stories"
    assert house.stand("image", "global")[0].name == "digits"
    assert house.stand("text", "stories:user/ann")[1] == "user/ann"
    assert house.stand("text", "elsewhere:global")[1] == "elsewhere:global"
    with pytest.raises(ServeError, match="run 'digits' makes image, not text; ask /v1/images/generations"):
        house.stand("text", "digits:global")


def test_a_house_that_is_closed_answers_nobody(house: House) -> None:
    shut = House(house.stands)
    with pytest.raises(ClosedError, match="is starting or stopping"):
        shut.stand("text", "global")


def test_two_runs_of_one_kind_have_to_be_named(house: House) -> None:
    stand = house.stands["stories"]
    both = House({"stories": stand, "again": replace(stand, name="again")}, up=True)
    assert both.stand("text", "again:global") == (both.stands["again"], "global")
    with pytest.raises(UnknownError, match="2 runs of text are served; name one: 'stories:global', 'again:global'"):
        both.stand("text", "global")


def test_two_folders_of_one_name_are_refused(house: House) -> None:
    folder = house.stands["stories"].run.folder
    with pytest.raises(ServeError, match="two runs are called 'stories'"):
        open_house([folder, folder], limits=Limits(texts=1, slots=4, prefix_bytes=0))


def test_a_client_that_no_run_knows_is_told_at_the_start(house: House) -> None:
    folder = house.stands["stories"].run.folder
    with pytest.raises(
        ServeError, match=r"client 'anne' has no adapter of its own in any run here; those who have: ann"
    ):
        open_house([folder], handed=["anne"], limits=Limits(texts=1, slots=4, prefix_bytes=0))
