"""The judge: as good on fresh glyphs as its record says, choosing among what it is asked, and refusing what it is not
for."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fedgen.data.glyphs import CHARACTERS, PLAIN, STYLES, drawings, has
from fedgen.errors import DataError, FedgenError
from fedgen.quality import FEATURES, compare, extract
from fedgen.quality.judge import WEIGHTS, Eye, Judge
from fedgen.tree import pack

pytest.importorskip("matplotlib", reason="the extra 'images' is not installed")

DEMO = ("plain", "bold", "slanted", "serif", "typewriter", "gothic", "outline")
SMALL = "abcdefghijklmnopqrstuvwxyz"


def fresh(styles: tuple[str, ...], characters: str, copies: int = 2) -> tuple[Tensor, list[str], list[str]]:
    """Drawings that nobody has seen, with the style and the character of each."""
    draw = torch.Generator().manual_seed(4711)
    named = [(style, character) for style in styles for character in characters if has(style, character)]
    made = [picture for style, character in named for picture in drawings(style, character, copies, 32, draw)]
    each = [name for name in named for _ in range(copies)]
    return torch.stack(made), [style for style, _ in each], [character for _, character in each]


def share(said: list[str], true: list[str]) -> float:
    """How often it is right."""
    return sum(one == other for one, other in zip(said, true, strict=True)) / len(true)


@pytest.fixture(scope="module")
def drawn_at_random(tmp_path_factory: pytest.TempPathFactory) -> Judge:
    """A judge that has learnt nothing."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = Eye().state_dict()
    path = tmp_path_factory.mktemp("judge") / "random.safetensors"
    path.write_bytes(pack({key: 3 * value.half() for key, value in weights.items()}))  # three: it says various things
    return Judge(str(path))


# --- the one that comes with the package


def test_it_is_as_good_on_fresh_glyphs_as_its_record_says() -> None:
    judge = Judge()
    pictures, styles, characters = fresh(DEMO, SMALL)
    assert share(judge.styles(pictures, DEMO), styles) >= judge.record["demo_styles_right"] - 0.03
    assert share(judge.letters(pictures, SMALL), characters) >= judge.record["demo_letters_right"] - 0.03


def test_it_is_as_good_among_all_styles_and_characters_as_its_record_says() -> None:
    judge = Judge()
    pictures, styles, characters = (found[::3] for found in fresh(tuple(STYLES), CHARACTERS, copies=1))
    assert share(judge.styles(pictures, tuple(STYLES)), styles) >= judge.record["styles_right"] - 0.03
    assert share(judge.letters(pictures, CHARACTERS), characters) >= judge.record["letters_right"] - 0.03


def test_its_record_is_of_a_judge_worth_asking() -> None:
    record = json.loads(WEIGHTS.with_suffix(".json").read_text("utf-8"))
    assert min(record["demo_styles_right"], record["demo_letters_right"]) > 0.9
    assert WEIGHTS.stat().st_size < 2**20


def test_glyphs_are_nearer_to_glyphs_of_their_style_than_to_others() -> None:
    bold, other, serif = (fresh((style,), letters)[0] for style, letters in (
        ("bold", "acegikmoqsuwy"), ("bold", "bdfhjlnprtvxz"), ("gothic", "bdfhjlnprtvxz"),
    ))  # fmt: skip
    near, far = compare(Judge(), bold, other), compare(Judge(), bold, serif)
    assert near.called == "Fréchet distance on glyph-judge features"
    assert near.frechet < far.frechet
    assert compare(Judge(), bold, bold).frechet == pytest.approx(0, abs=1e-3)


# --- any


def test_it_chooses_only_among_what_it_is_asked(drawn_at_random: Judge) -> None:
    pictures, _, _ = fresh(("serif",), "abcdefgh")
    for among in (("gothic",), ("outline", "bold"), PLAIN):
        assert set(drawn_at_random.styles(pictures, among)) <= set(among)
        assert len(drawn_at_random.styles(pictures, among)) == len(pictures)
    assert drawn_at_random.letters(pictures, "7") == ["7"] * len(pictures)
    assert set(drawn_at_random.letters(pictures, "xyz")) <= set("xyz")


def test_it_says_the_same_in_whatever_order_it_is_asked(drawn_at_random: Judge) -> None:
    pictures = fresh(DEMO, "ag")[0]
    assert drawn_at_random.styles(pictures, DEMO) == drawn_at_random.styles(pictures, DEMO[::-1])
    assert drawn_at_random.letters(pictures, SMALL) == drawn_at_random.letters(pictures, SMALL[::-1])
    assert len(set(drawn_at_random.letters(pictures, SMALL))) > 1


def test_features_are_64_a_picture_alone_or_among_others(drawn_at_random: Judge) -> None:
    pictures = fresh(("bold",), "abcdefgh")[0]
    features = extract(drawn_at_random, pictures)
    assert features.shape == (16, drawn_at_random.width) == (16, 64)
    assert features[3:4].allclose(drawn_at_random.of(pictures[3:4]), atol=1e-5)
    assert FEATURES["judge"](drawn_at_random.path) == drawn_at_random


def test_pictures_of_another_size_are_resized(drawn_at_random: Judge) -> None:
    pictures = fresh(("bold",), "abcdefgh", copies=1)[0]
    large = pictures.repeat_interleave(2, 2).repeat_interleave(2, 3)
    apart = torch.cdist(drawn_at_random.of(large), drawn_at_random.of(pictures))
    assert apart.argmin(1).tolist() == list(range(8))  # each is nearest to itself


BLANK = torch.zeros(2, 1, 32, 32, dtype=torch.uint8)


@pytest.mark.parametrize(
    "pictures",
    [BLANK.expand(-1, 3, -1, -1), BLANK.float(), BLANK[0], torch.zeros(2, 64, dtype=torch.uint8)],
    ids=["colour", "float", "one", "flat"],
)
def test_what_is_no_grey_picture_is_refused(pictures: Tensor, drawn_at_random: Judge) -> None:
    with pytest.raises(DataError, match=r"judge: wanted grey pictures \[n, 1, high, wide\] in bytes, came .*\d"):
        drawn_at_random.of(pictures)


def test_styles_and_characters_it_does_not_know_are_refused(drawn_at_random: Judge) -> None:
    with pytest.raises(DataError, match="judge: 'fat' is none that it knows; it knows plain, plain STIX"):
        drawn_at_random.styles(BLANK, ("bold", "fat"))
    with pytest.raises(DataError, match="judge: 'é' is none that it knows; it knows a, b, c"):
        drawn_at_random.letters(BLANK, "aé")
    with pytest.raises(DataError, match="judge: wanted at least one to choose among, came none"):
        drawn_at_random.styles(BLANK, ())


def test_weights_that_are_missing_cut_short_or_of_something_else(drawn_at_random: Judge, tmp_path: Path) -> None:
    whole = Path(drawn_at_random.path).read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "other.safetensors").write_bytes(pack({"weight": torch.zeros(3)}))
    for name, said in (("none", "cannot be read"), ("cut", "wanted whole safetensors"), ("other", "wanted a judge")):
        path = tmp_path / f"{name}.safetensors"
        with pytest.raises(FedgenError, match=said) as caught:
            Judge(str(path)).of(BLANK)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
