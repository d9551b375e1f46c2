"""A run's voice: wishes under many adapters share the passes, and each is drawn as if it were the only one."""

import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fedgen
from fedgen import Run, lora, tree
from fedgen.errors import DataError, ServeError, StoreError, TreeError
from fedgen.records import Document, Tree
from fedgen.roster import CENTROIDS
from fedgen.sample import BARE, CROWD, Sampler, Wish, compact, mixture, route, sampler, spelled, stages

STEPS, GUIDANCE = 2, 3.0
CAT = Document("", "", "a cat")


@pytest.fixture(scope="module")
def run(digits_plan: Callable[[str], dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run over digits, told in words."""
    return fedgen.run(digits_plan("flow"), tmp_path_factory.mktemp("runs") / "digits")


@pytest.fixture(scope="module")
def voice(run: Run) -> Iterator[Sampler]:
    """Its backbone, under its own adapter and three loud ones."""
    found = sampler(run)
    lines = 0.3 * torch.randn(3, found.bank.layout.width, generator=torch.Generator().manual_seed(0))
    with found.bank:
        yield replace(found, known=dict(zip(("a", "b", "c"), lines, strict=True)))


@pytest.fixture(scope="module")
def words(tiny_run: Run) -> Iterator[Sampler]:
    found = sampler(tiny_run)
    with found.bank:
        yield found


def painted(voice: Sampler, *wishes: Wish) -> Tensor:
    return torch.stack(list(voice.paint(wishes, steps=STEPS, guidance=GUIDANCE))).int()


def test_many_wishes_are_painted_as_one_at_a_time(voice: Sampler) -> None:
    adapters = ["a", BARE, "b", "global", "c"]
    wishes = [Wish(adapters[at % 5], Document("", "", f"a cat {at % 3}"), at % 4) for at in range(CROWD + 5)]
    together = painted(voice, *wishes)
    alone = torch.cat([painted(voice, wish) for wish in wishes])
    assert together.shape == (CROWD + 5, 1, 8, 8)
    assert (together - alone).abs().max() <= 1  # a rounding to bytes may fall to either side
    assert len({picture.numpy().tobytes() for picture in together}) > CROWD / 2


def test_adapter_prompt_seed_and_use_all_tell(voice: Sampler) -> None:
    wish = Wish("a", CAT, 0)
    same, again, *others = painted(
        voice, wish, wish, replace(wish, adapter="b"), replace(wish, adapter=BARE), replace(wish, seed=1),
        replace(wish, use="other"), replace(wish, asked=Document("", "", "a dog")),
    )  # fmt: skip
    assert same.equal(again)
    assert all((same - other).abs().max() > 1 for other in others)


def test_no_adapter_is_the_bare_backbone(voice: Sampler) -> None:
    wish = Wish(BARE, CAT, 0)
    assert voice.line(BARE).count_nonzero() == 0
    assert voice.line("global").count_nonzero() > 0
    bare = Sampler(voice.run, voice.backbone, voice.bank, {"zeros": torch.zeros_like(voice.line("a"))})
    assert painted(voice, wish).equal(painted(bare, replace(wish, adapter="zeros")))


def test_no_wish_is_no_picture(voice: Sampler) -> None:
    assert list(voice.paint([], steps=STEPS, guidance=GUIDANCE)) == []


def test_an_adapter_that_is_not_there_is_named(voice: Sampler) -> None:
    with pytest.raises(StoreError, match=r"has no adapter 'client/ann'; it has global"):
        painted(voice, Wish("client/ann", CAT, 0))


def test_a_prompt_that_is_too_long_is_refused(voice: Sampler) -> None:
    with pytest.raises(DataError, match="wanted at most 16 tokens, came"):
        painted(voice, Wish("a", Document("", "", "a cat " * 40), 0))


def test_a_run_of_text_refuses_to_paint_and_one_of_pictures_to_write(voice: Sampler, words: Sampler) -> None:
    with pytest.raises(StoreError, match=r"its backbone writes text and draws no pictures; use write"):
        painted(words, Wish(BARE, CAT, 0))
    with pytest.raises(StoreError, match=r"its backbone draws pictures and writes no text; use paint"):
        "".join(voice.write("the harbour"))


def test_a_voice_writes_the_same_from_the_same_seed(words: Sampler) -> None:
    def written(seed: int) -> str:
        return "".join(words.write("the harbour ", adapter="client/ann", tokens=12, temperature=1.0, seed=seed))

    assert written(3) == written(3) != written(4)


# ---- what is said of adapters


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("global", {"global": 1.0}),
        ("client/Smith, John", {"client/Smith, John": 1.0}),
        ("a=0.7,b=0.7", {"a": 0.7, "b": 0.7}),
        (" a = 1.5 , b = -0.5 ", {"a": 1.5, "b": -0.5}),
        ("client/Smith, John=0.5,client/x=y=2", {"client/Smith, John": 0.5, "client/x=y": 2.0}),
        ("global@round-2=1e-1,backbone=3", {"global@round-2": 0.1, "backbone": 3.0}),
    ],
)
def test_a_mixture_is_read_from_text(text: str, parts: Mapping[str, float]) -> None:
    assert mixture(text) == parts
    assert mixture(spelled(parts)) == parts
    assert stages(text) == [(1.0, parts)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a=much,b=0.5", "no finite weight of 'a'"),
        ("a=nan", "no finite weight of 'a'"),
        ("a=0.5,b=-inf", "no finite weight of 'b'"),
        ("a=,b=0.5", "no finite weight of 'a'"),
        ("a=0.5,b", "no finite weight of 'b'"),
        ("=0.5", "no finite weight of '=0.5'"),
        ("a=0.5,b=0.2,a=0.1", "names 'a' twice; name it once"),
    ],
)
def test_a_mixture_that_cannot_be_read_is_refused(text: str, said: str) -> None:
    with pytest.raises(ServeError, match=f"mixture '{text}': .*{said}"):
        mixture(text)


def test_stages_are_read_from_text() -> None:
    assert stages("a until 0.4 then b=0.5,c=0.5") == [(0.4, {"a": 1.0}), (1.0, {"b": 0.5, "c": 0.5})]
    assert stages("a until 0 then b until 0.25 then a") == [(0.0, {"a": 1.0}), (0.25, {"b": 1.0}), (1.0, {"a": 1.0})]
    for text in ("a then b", "a until soon then b", "a until 1.5 then b", "a until 0.5 then b until 0.4 then c"):
        with pytest.raises(ServeError, match=r"wanted 'A until 0.5 then B', shares rising from 0 to 1, came"):
            stages(text)


# ---- mixtures and stages drawn


def test_mixtures_stages_and_single_adapters_share_the_passes_and_are_painted_as_each_alone(voice: Sampler) -> None:
    said = ["a=0.7,b=0.7", "a", BARE, "c=0.5,b=0.2,a=0.1", "b until 0.5 then a=0.7,c=1", "b=-1", "a=1,backbone=4"]
    wishes = [Wish(text, CAT, 0) for text in said]
    together = painted(voice, *wishes)
    alone = torch.cat([painted(voice, wish) for wish in wishes])
    assert (together - alone).abs().max() <= 1
    assert (together[1] - together[6]).abs().max() <= 1  # more of the backbone is nothing
    for one, two in ((0, 1), (0, 3), (1, 4), (4, 0), (5, 2)):
        assert (together[one] - together[two]).abs().max() > 1


def test_a_switch_takes_place_between_the_steps(voice: Sampler) -> None:
    def drawn(text: str, steps: int = 4) -> Tensor:
        return torch.stack(list(voice.paint([Wish(text, CAT, 0)], steps=steps, guidance=GUIDANCE))).int()

    first, second = drawn("a"), drawn("b")
    assert drawn("a until 0.5 then a").equal(first)
    assert drawn("b until 0 then a").equal(first)
    assert drawn("a until 1 then b").equal(first)
    assert drawn("a until 0.1 then b").equal(drawn("a until 0.25 then b"))  # the first step
    assert not drawn("a until 0.1 then b").equal(drawn("a until 0.3 then b"))  # the second too
    half = drawn("a until 0.5 then b")
    assert drawn("a until 0.3 then a until 0.5 then b").equal(half)
    assert not half.equal(first)
    assert not half.equal(second)


def test_text_is_written_under_mixtures_and_not_in_stages(words: Sampler) -> None:
    def written(adapter: str) -> str:
        return "".join(words.write("the harbour ", adapter=adapter, tokens=12, temperature=1.0))

    assert written("client/ann=1") == written("client/ann") == written("client/ann=1,backbone=1")
    assert len({written(text) for text in ("client/ann=30", "client/ann=30,client/bob=-30", "backbone")}) == 3
    with pytest.raises(ServeError, match="take turns between the steps of a picture alone"):
        written("client/ann until 0.5 then client/bob")


def test_an_unknown_part_of_a_mixture_is_told_with_the_nearest_names_before_anything_is_drawn(
    voice: Sampler, tiny_run: Run
) -> None:
    wishes = [*[Wish("a", CAT, 0)] * CROWD, Wish("a until 0.9 then b=1,globe=1", CAT, 0)]
    with pytest.raises(StoreError, match=r"has no adapter 'globe'; it has global"):
        next(voice.paint(wishes, steps=2, guidance=1))
    with pytest.raises(StoreError, match=r"has no adapter 'client/anna'; it has global, client/ann, "):
        compact(tiny_run, mixture("global=0.5,client/anna=0.5"))


def test_an_adapter_whose_name_reads_as_a_mixture_can_be_named(tiny_run: Run, tmp_path: Path) -> None:
    run = copied(tiny_run, tmp_path)
    own = run.shelf().get("ann")
    assert own is not None
    shelf = run.shelf()
    shelf.put("x=2", 3, own)
    shelf.put("now then", 3, own)
    shelf.flush()
    voice = sampler(run)
    with voice.bank:
        for name in ("client/x=2", "client/now then"):
            text = "".join(voice.write("the harbour ", adapter=name, tokens=8))
            assert text == "".join(voice.write("the harbour ", adapter="client/ann", tokens=8))


def copied(run: Run, to: Path) -> Run:
    """A copy of a run's folder, to be spoilt."""
    return Run(Path(shutil.copytree(run.folder, to / run.folder.name)))


def test_an_adapter_that_is_wider_than_the_bank_is_not_cut_silently(tiny_run: Run, tmp_path: Path) -> None:
    run = copied(tiny_run, tmp_path)
    shelf = run.shelf()
    shelf.put("finn", 3, lora.resize(run.adapter("global")[0], 9))
    shelf.flush()
    voice = sampler(run)
    with voice.bank, pytest.raises(TreeError, match="rank 9 does not fit a bank of rank 4"):
        voice.line("client/finn")


# ---- mixtures made small


def test_a_compact_mixture_is_the_sum_of_products_and_says_its_loss(tiny_run: Run) -> None:
    parts = {"client/ann": 0.7, "client/bob": 0.4, BARE: 5.0}
    shares = [(0.7, tiny_run.adapter("client/ann")[0]), (0.4, tiny_run.adapter("client/bob")[0])]
    wanted = lora.product_sum(shares)

    def off(made: Tree) -> float:
        gap = lora.product_sum([(1.0, made), (-1.0, wanted)])
        return lora.inner(gap, gap) / lora.inner(wanted, wanted)

    whole, card, lost = compact(tiny_run, parts)
    assert lora.rank(whole) == 8
    assert off(whole) < 1e-9
    assert lost < 1e-9
    assert (card.cluster, card.client) == ("client/ann=0.7,client/bob=0.4,backbone=5", "")
    small, _, lost = compact(tiny_run, parts, 2)
    assert lora.rank(small) == 2
    assert lost == pytest.approx(off(small), rel=1e-3)
    assert 0.01 < lost < 1


def test_one_adapter_at_its_own_rank_stays_as_it_is(tiny_run: Run) -> None:
    own, card = tiny_run.adapter("client/ann")
    for rank in (0, 4):
        same, said, lost = compact(tiny_run, {"client/ann": 1.0}, rank)
        assert all(same[key].equal(value) for key, value in own.items())
        assert (said, lost) == (card, 0.0)
    with pytest.raises(ServeError, match="has no adapter in it; name one of the run's"):
        compact(tiny_run, {BARE: 1.0})


# ---- routing


@pytest.fixture
def routed(tiny_run: Run, tmp_path: Path) -> Run:
    """A run with three clusters in a plane."""
    run = copied(tiny_run, tmp_path)
    turns = torch.tensor([0.0, 0.5, 2.0])
    middles = torch.stack([turns.cos(), turns.sin()], 1)
    content = tree.pack({f"cluster-{at}": middle for at, middle in enumerate(middles)})
    (run.folder / CENTROIDS).write_bytes(content)
    return run


def test_a_route_weighs_the_nearest_clusters_by_likeness(routed: Run) -> None:
    vector = torch.tensor([3.0, 0.6])  # of any length
    found = route(routed, vector, top=2, temperature=0.1)
    angle = torch.atan2(vector[1], vector[0])
    near = torch.stack([angle.cos(), (angle - 0.5).cos()])
    assert list(found) == ["cluster-0", "cluster-1"]
    assert list(found.values()) == pytest.approx((near / 0.1).softmax(0).tolist(), rel=1e-3)
    for top in (1, 2, 3, 9):
        found = route(routed, vector, top=top)
        assert len(found) == min(top, 3)
        assert sum(found.values()) == pytest.approx(1.0, abs=1e-12)
        assert list(found.values()) == sorted(found.values(), reverse=True)
    half, whole = (route(routed, vector, gain=gain) for gain in (1.0, 2.0))
    assert whole == {name: pytest.approx(2 * weight) for name, weight in half.items()}
    assert route(routed, vector, top=1) == {"cluster-0": 1.0}
    assert route(routed, vector, top=3, temperature=1e-3)["cluster-0"] > 0.999


def test_a_route_that_cannot_be_taken_is_refused(routed: Run, tiny_run: Run) -> None:
    with pytest.raises(ServeError, match=r"has no centroids.safetensors to route by; no clusters were formed"):
        route(tiny_run, torch.ones(2))
    for vector, came in ((torch.ones(3), r"\(3,\)"), (torch.tensor([1.0, torch.nan]), r"\(2,\) with NaN")):
        with pytest.raises(ServeError, match=f"wanted 2 finite numbers as the run's own encoder gives, came {came}"):
            route(routed, vector)
    for top, temperature in ((0, 0.1), (2, 0.0)):
        with pytest.raises(ServeError, match="wanted 1 cluster or more, a temperature above 0"):
            route(routed, torch.ones(2), top=top, temperature=temperature)
    with pytest.raises(ServeError, match=r"a finite gain, came 2, 0\.1 and inf"):
        route(routed, torch.ones(2), gain=math.inf)
