"""Compression: right on average, as long as it must be, and nothing hostile is believed."""

import math
import tracemalloc
from dataclasses import replace
from typing import Any

import pytest
import torch
import zstandard

from fedgen import tree
from fedgen.errors import TreeError
from fedgen.guards import PACKED, Compress
from fedgen.records import Tree

LIKE: Tree = {"b": torch.zeros(7, 30), "a": torch.zeros(5, 41), "c": torch.zeros(3)}
COUNT = 7 * 30 + 5 * 41 + 3
WAYS = [
    Compress(32), Compress(16), Compress(8), Compress(4), Compress(1), Compress(4, top=0.3), Compress(1, top=0.3),
    Compress(8, skip=0.8), Compress(4, top=0.1, skip=0.8), Compress(4, 7), Compress(4, rounding="nearest"),
]  # fmt: skip
ALL = [*WAYS, *(replace(way, lossless="zstd") for way in WAYS)]


def some(seed: int = 0, like: Tree = LIKE) -> Tree:
    """Numbers of which one tensor's are small."""
    draw = torch.Generator().manual_seed(seed)
    return {key: torch.randn(like[key].shape, generator=draw) * (0.1 if key == "a" else 1.0) for key in sorted(like)}


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def both(way: Compress, change: Tree, seed: int = 0) -> Tree:
    return way.back(way.out(change, draw(seed)), change)


def line(*numbers: float) -> Tree:
    return {"x": torch.tensor(numbers)}


def packed(*numbers: int) -> Tree:
    return {PACKED: torch.tensor(numbers, dtype=torch.uint8)}


def name(way: Compress) -> str:
    return f"{way.bits}-{way.group}-{way.rounding}-{way.top}-{way.skip}-{way.lossless}"


# ---- what comes back


@pytest.mark.parametrize("way", ALL, ids=name)
def test_keys_shapes_and_kind_come_back(way: Compress) -> None:
    change = some()
    found = both(way, change)
    assert {key: value.shape for key, value in found.items()} == {key: value.shape for key, value in change.items()}
    assert all(value.dtype == torch.float32 for value in found.values())
    assert tree.norm(tree.add(found, change, -1.0)) < 0.9 * tree.norm(change)


def test_32_bits_lose_nothing() -> None:
    change = some()
    assert all(torch.equal(value, change[key]) for key, value in both(Compress(32), change).items())


@pytest.mark.parametrize(("bits", "levels"), [(16, 32767), (8, 127), (4, 7)])
@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
def test_a_number_is_off_by_a_step_at_most(bits: Any, levels: int, rounding: Any) -> None:
    change = some()
    found = both(Compress(bits, rounding=rounding), change)
    step = max(float(value.abs().max()) for value in change.values()) * (1 + 2**-7) / levels
    worst = max(float((found[key] - change[key]).abs().max()) for key in change)
    assert worst <= step * (0.5 if rounding == "nearest" else 1.0) * 1.001


def test_a_groups_longest_number_is_never_cut_off() -> None:
    change = line(1.0039, -1.0039, 0.5)  # just above what bfloat16 can say
    found = both(Compress(16, rounding="nearest"), change)["x"]
    assert torch.allclose(found, change["x"], atol=1e-4)


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_steps_rounded_by_chance_are_right_on_average(bits: Any) -> None:
    """Each number's mean over many draws is within five standard errors of it."""
    change, many = some(), 3000
    found = torch.stack([tree.flatten(both(Compress(bits), change, seed)) for seed in range(many)]).double()
    error = found.mean(0) - tree.flatten(change)
    spread = found.std(0) / math.sqrt(many)
    near = 1e-6 * (1 + tree.flatten(change).abs())  # what float32 can say of a mean
    assert bool((error.abs() <= 5 * spread + near).all())
    assert float(spread.mean()) > 0


def test_to_the_nearest_is_not_right_on_average() -> None:
    change = line(7.0, 0.3, 0.3, 0.3)
    assert both(Compress(4, rounding="nearest"), change)["x"].tolist() == [7.0, 0.0, 0.0, 0.0]


def test_one_bit_is_a_sign_and_the_mean_length_of_its_group() -> None:
    found = both(Compress(1, group=2), line(1.0, -3.0, 0.5, 1.5, -4.0))
    assert found["x"].tolist() == [2.0, -2.0, 1.0, 1.0, -4.0]


def test_the_top_share_of_the_whole_line_is_sent() -> None:
    change = {"a": torch.tensor([9.0, 1.0, -2.0, 2.0]), "b": torch.tensor([-8.0, 2.0])}
    found = both(Compress(32, top=0.5), change)
    assert found["a"].tolist() == [9.0, 0.0, -2.0, 0.0]  # of three that are equally long the first
    assert found["b"].tolist() == [-8.0, 0.0]


def test_what_hardly_moved_is_not_sent() -> None:
    change = some()
    whole, found = Compress(32).out(change, draw())[PACKED], Compress(32, skip=0.3).out(change, draw())[PACKED]
    assert len(whole) - len(found) == 4 * 5 * 41 - 1
    back = both(Compress(32, skip=0.3), change)
    assert not back["a"].any()
    assert torch.equal(back["b"], change["b"])


@pytest.mark.parametrize("way", ALL, ids=name)
def test_a_change_of_nothing(way: Compress) -> None:
    found = both(way, tree.zeros(LIKE))
    assert not any(value.any() for value in found.values())


@pytest.mark.parametrize(
    ("way", "size"),
    [
        (Compress(32), 4 * COUNT),
        (Compress(16), 2 * COUNT + 2 * 7),
        (Compress(8), COUNT + 2 * 7),
        (Compress(4), COUNT // 2 + 2 * 7),
        (Compress(1), 53 + 2 * 7),
        (Compress(4, top=0.25), 53 + 2 * 2 + 53),  # 105 numbers and where they are
    ],
    ids=lambda value: name(value) if isinstance(value, Compress) else str(value),
)
def test_how_long_a_message_is(way: Compress, size: int) -> None:
    assert COUNT == 418
    assert len(way.out(some(), draw())[PACKED]) == size


def test_a_group_may_be_longer_than_all_there_is() -> None:
    change = some()
    wide, whole = (Compress(4, group, rounding="nearest") for group in (2**50, COUNT))
    assert torch.equal(wide.out(change, draw())[PACKED], whole.out(change, draw())[PACKED])
    assert all(torch.equal(value, both(whole, change)[key]) for key, value in both(wide, change).items())


def test_zstd_gains_on_few_numbers_and_never_changes_any() -> None:
    change = some(like={"x": torch.zeros(20_000)})
    way = Compress(4, top=0.1)
    plain, zipped = way.out(change, draw()), replace(way, lossless="zstd").out(change, draw())
    assert len(zipped[PACKED]) < 0.75 * len(plain[PACKED])
    found = replace(way, lossless="zstd").back(zipped, change)
    assert torch.equal(found["x"], way.back(plain, change)["x"])


@pytest.mark.parametrize("number", [1e-44, 1e-38, 3e38])
@pytest.mark.parametrize("bits", [16, 8, 4, 1])
def test_very_short_and_very_long_numbers(bits: Any, number: float) -> None:
    found = both(Compress(bits, rounding="nearest"), line(number, -number))["x"]
    assert torch.allclose(found, torch.tensor([number, -number]), rtol=0.01, atol=1e-40)  # bfloat16 has none shorter


# ---- what is refused


@pytest.mark.parametrize("number", [3.4e38, math.inf, math.nan])
@pytest.mark.parametrize("bits", [32, 4, 1])
def test_no_code_has_numbers_as_long(bits: Any, number: float) -> None:
    with pytest.raises(TreeError, match=r"wanted numbers up to 3\.3895e\+38"):
        Compress(bits).out(line(1.0, number), draw())


FOUR = line(1.0, 2.0, 3.0)
BAD: list[tuple[Compress, Tree, str]] = [
    (Compress(4), {}, "wanted one line of bytes, came 0 tensors"),
    (Compress(4), {"x": torch.zeros(3)}, "wanted one line of bytes, came 1 tensors"),
    (Compress(4), {PACKED: torch.zeros(4)}, "or of another kind"),
    (Compress(4), {PACKED: torch.zeros(2, 2, dtype=torch.uint8)}, "or of another kind"),
    (Compress(4), packed() | {"x": torch.zeros(1)}, "came 2 tensors"),
    (Compress(4), packed(), "wanted 2 more bytes, came 0; both ends must have the same settings"),
    (Compress(4), packed(0, 64, 1), "wanted 2 more bytes, came 1"),
    (Compress(4), packed(0, 64, 1, 2, 3), "wanted no more bytes, came 1"),
    (Compress(4), packed(0x80, 0x7F, 0, 0), "came some that are not finite"),  # infinity
    (Compress(4), packed(0xC0, 0x7F, 0, 0), "came some that are not finite"),  # no number
    (Compress(4), packed(0, 0xC0, 0, 0), "wanted scales from zero on"),
    (Compress(4), packed(0, 64, 8, 0), "wanted at most 7 steps, came 8"),
    (Compress(8), packed(0, 64, 0x80, 0, 0), "wanted at most 127 steps, came 128"),
    (Compress(16), packed(0, 64, 0, 0x80, 0, 0, 0, 0), "wanted at most 32767 steps, came 32768"),
    (Compress(4), packed(0, 64, 1, 0x10), "wanted zeros behind the last number"),
    (Compress(1), packed(0, 64, 0b00010000), "wanted zeros behind the last bit"),
    (Compress(32), packed(0, 0, 0x80, 0x7F, *[0] * 8), "came some that are not finite"),
    (Compress(32, top=0.3), packed(0b11000000, *[0] * 8), "wanted 1 numbers, came the places of 2"),
    (Compress(32, top=0.3), packed(0b00010000, *[0] * 4), "wanted zeros behind the last bit"),
    (Compress(32, skip=0.1), packed(0b11000000, *[0] * 12), "wanted zeros behind the last bit"),
    (Compress(32, skip=0.1), packed(0b10000000, *[0] * 11), "wanted 12 more bytes, came 11"),
]  # fmt: skip


@pytest.mark.parametrize(("way", "came", "line"), BAD, ids=[str(at) for at in range(len(BAD))])
def test_what_no_honest_client_sends_is_refused(way: Compress, came: Tree, line: str) -> None:
    with pytest.raises(TreeError, match=f"^compress: .*{line}") as error:
        way.back(came, FOUR)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("way", ALL, ids=name)
def test_bytes_cut_off_put_on_or_turned_over_are_refused_or_read_as_numbers(way: Compress) -> None:
    raw, chance = way.out(some(), draw())[PACKED], draw(1)
    for cut in (raw[:-1], raw[: len(raw) // 2], raw[:0], torch.cat((raw, raw[:1])), torch.cat((raw, raw))):
        with pytest.raises(TreeError):
            way.back({PACKED: cut}, LIKE)
    for _ in range(200):
        odd = raw.clone()
        odd[int(torch.randint(len(raw), (1,), generator=chance))] = int(torch.randint(256, (1,), generator=chance))
        try:
            found = way.back({PACKED: odd}, LIKE)
        except TreeError:
            continue
        assert tree.is_finite(found)


def zipped(raw: bytes, **settings: Any) -> Tree:
    found = zstandard.ZstdCompressor(**settings).compress(raw)
    return {PACKED: torch.tensor([*len(found).to_bytes(4, "little"), *found], dtype=torch.uint8)}


def endless() -> Tree:
    """64 MB of zeros in a few thousand bytes, in a frame that does not say how many there are."""
    press = zstandard.ZstdCompressor(write_content_size=False)
    found = press.compress(bytes(2**26))
    return {PACKED: torch.tensor([*len(found).to_bytes(4, "little"), *found], dtype=torch.uint8)}


BOMBS = [
    (zipped(bytes(2**26)), "wanted 1,672 bytes once unzipped, came a promise of 67,108,864"),
    (endless(), "came a promise of 18,446,744,073,709,551,615"),
    (packed(255, 255, 255, 255, 1, 2, 3), "wanted 4,294,967,295 more bytes, came 3"),
    (packed(5, 0, 0, 0, 1, 2, 3, 4, 5), "wanted a whole zstandard frame, came 5 other bytes"),
]  # fmt: skip


@pytest.mark.parametrize(("came", "line"), BOMBS, ids=["bomb", "endless", "long", "nonsense"])
def test_a_bomb_is_refused_before_it_takes_memory(came: Tree, line: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(TreeError, match=line):
            Compress(32, lossless="zstd").back(came, LIKE)
        assert tracemalloc.get_traced_memory()[1] < 2**18
    finally:
        tracemalloc.stop()


def test_a_frame_that_holds_more_than_it_says_is_refused() -> None:
    """The promise is what is wanted; zeros beyond it follow in the same frame."""
    raw = bytearray(zipped(bytes(2**20))[PACKED].numpy().tobytes()[4:])
    assert raw[4] & 0b11000000 == 0b10000000  # the promise has four bytes, behind the magic number and this one
    raw[5:9] = (4 * COUNT).to_bytes(4, "little")
    came = {PACKED: torch.tensor([*len(raw).to_bytes(4, "little"), *raw], dtype=torch.uint8)}
    with pytest.raises(TreeError, match="wanted a whole zstandard frame"):
        Compress(32, lossless="zstd").back(came, LIKE)
