"""Every method on a problem of two numbers, held to what its paper's rule gives when it is worked out by hand.

The model is y = (w + b a) x with one weight w and a pair (a, b). A client's rows are all alike, so its loss is
(y' - y)^2 with the slope 2 x (y' - y) in w. Plain gradient descent, one step a turn, from a = 1 and b = 0.5.
"""

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fedgen import factors, lora
from fedgen import plan as plans
from fedgen.allot import fitted
from fedgen.backbones import Backbone
from fedgen.errors import PlanError
from fedgen.groups import Rules
from fedgen.journal import load_checkpoint, save_checkpoint
from fedgen.methods import METHODS
from fedgen.places.inprocess import asker
from fedgen.plan import Plan
from fedgen.records import GLOBAL, Client, Document, Offer, Rows, State, Tree, Update
from fedgen.rounds import Server, play
from fedgen.store import Shelf
from fedgen.turns import Site

WEIGHT, RATE = 0.25, 0.125
KEY_A, KEY_B = f"{lora.PREFIX}only{lora.A_END}", f"{lora.PREFIX}only{lora.B_END}"
START = (1.0, 0.5)
DATA = {"ann": (1.0, 2.0, 1), "bob": (2.0, -1.0, 3)}  # x, y, and how many rows
WHOLE = sum(rows for _, _, rows in DATA.values())
Pair = tuple[float, float]


class Line(nn.Module):
    """y = w x."""

    def __init__(self) -> None:
        super().__init__()
        self.only = nn.Linear(1, 1, bias=False)
        nn.init.constant_(self.only.weight, WEIGHT)

    def forward(self, x: Tensor) -> Tensor:
        return self.only(x)


@dataclass(frozen=True)
class Toy:
    """A backbone of one weight."""

    network: nn.Module = field(default_factory=Line)
    kind: str = "text"
    component: str = ""
    name: str = "toy"
    hash: str = "0" * 64
    targets: tuple[str, ...] = ("only",)
    length: int = 1
    looks: int = 1

    def encode(self, documents: Sequence[Document]) -> Rows:
        return {}

    def draw(self, rows: Rows, draw: torch.Generator) -> Rows:
        return rows

    def losses(self, rows: Rows) -> tuple[Tensor, Tensor]:
        loss = (self.network(rows["x"]) - rows["y"]).square().flatten()
        return loss, torch.ones(len(loss), dtype=torch.long)

    def seal(self, prompt: str) -> Rows:
        return {}

    def row_bytes(self, *, anew: bool = False) -> int:
        return 1


def rows_of(x: float, y: float, count: int) -> Rows:
    return {"x": torch.full((count, 1), x), "y": torch.full((count, 1), y)}


BASE = plans.read(
    {
        "adapter": {"rank": 1, "targets": ["only"]},
        "partition": {"kind": "even", "clients": 2},
        "training": {"optimizer": "sgd", "lr": RATE, "steps": 2, "batch": 4, "clip": 0.0, "cohort": 2},
        "cohort": {"count": 2},
        "personal": {"steps": 1, "lr": RATE},
    }
)


@dataclass(frozen=True)
class Played:
    """A federation of the two clients after some rounds."""

    plan: Plan
    state: State
    site: Site
    sent: Sequence[Update]
    ask: Callable[[Sequence[Offer]], object]

    @property
    def product(self) -> float:
        """b a of the server's adapter."""
        return product(self.state.adapters[GLOBAL])

    def own(self, name: str) -> Tree:
        """The client's own adapter, once it has been asked for scores."""
        cluster = self.state.cluster(name)
        offer = Offer(self.state.round + 1, name, cluster, self.state.adapters[cluster], "score")
        list(self.ask([offer]))  # type: ignore[call-overload]
        found = self.site.shelf.get(name)
        assert found is not None
        return found


def pair_tree(a: float, b: float) -> Tree:
    return {KEY_A: torch.tensor([[a]]), KEY_B: torch.tensor([[b]])}


def product(tree: Tree) -> float:
    return float((tree[KEY_B].double() @ tree[KEY_A].double()).item())


def numbers(tree: Tree) -> Pair:
    return float(tree[KEY_A].item()), float(tree[KEY_B].item())


Held = dict[str, tuple[float, float, int]]


def played(
    name: str, rounds: int, steps: int = 1, *settings: str, data: Held = DATA, turned: bool = False, wide: bool = False
) -> Played:
    """The method's own parts in the engine's own rounds; replies may come in the order turned round."""
    plan = plans.read(METHODS[name].over(plans.read(BASE, [f"training.steps={steps}"])), ["adapter.rank=1", *settings])
    toy: Backbone = Toy()
    held = {name: Client(name, *([rows_of(*own)] * 3), ("a", "b")) for name, own in data.items()}  # type: ignore[arg-type]
    bank = plan.adapter.bank(toy.network, plan.width)
    site = Site(0, toy, bank, held, plan.training, plan.personal, Shelf(), share=plan.share)
    sizes = {name: rows for name, (_, _, rows) in data.items()}
    plan = plans.read(plan, [f"cohort.count={len(data)}"]) if name != "central" else plan
    rules = Rules(plan.cluster, plan.hierarchy, plan.exchange)
    parts = plan.cohort, plan.aggregate, plan.outer, rules, plan.share, plan.adapter.rank
    server, sent = Server(0, sorted(data), sizes, *parts), []
    ask = fitted(asker(site), plan.fit(plan.allot.ranks(sorted(data), plan.adapter.rank, plan.adapter.ranks, {}, None)))

    def heard(offers):  # type: ignore[no-untyped-def]
        replies = list(ask(offers))
        sent.extend(replies)
        yield from reversed(replies) if turned else replies

    start = pair_tree(*START) if plan.adapter.of == "pairs" else {"only.weight": torch.zeros(1, 1)}
    if wide:  # a second rank, of which a little is there
        start = {KEY_A: torch.tensor([[START[0]], [0.5]]), KEY_B: torch.tensor([[START[1], 0.25]])}
    state = State(0, {GLOBAL: start})
    for _ in range(rounds):
        state, _ = play(server, state, heard)
    return Played(plan, state, site, sent, ask)


# ---- by hand


def slope(name: str, w: float) -> float:
    """dL/dw."""
    x, y, _ = DATA[name]
    return 2 * x * (w * x - y)


def step(
    name: str, a: float, b: float, *, still: str = "", under: float = 0.0, pull: float = 0.0, to: Pair = START
) -> Pair:
    """One step of descent on (a, b), with `under` more in the weight, of which `still` does not move."""
    g = slope(name, WEIGHT + under + a * b)
    new = a - RATE * (g * b + pull * (a - to[0])), b - RATE * (g * a + pull * (b - to[1]))
    return (a if still == "a" else new[0]), (b if still == "b" else new[1])


def mean(found: dict[str, float]) -> float:
    return sum(found[name] * DATA[name][2] for name in DATA) / WHOLE


def apart(found: dict[str, Pair]) -> Pair:
    return mean({name: a for name, (a, _) in found.items()}), mean({name: b for name, (_, b) in found.items()})


def steps(a: float, b: float, *, still: str = "") -> dict[str, Pair]:
    return {name: step(name, a, b, still=still) for name in DATA}


def near(found: float | Pair, wanted: float | Pair) -> bool:
    return found == pytest.approx(wanted, rel=1e-5, abs=1e-6)


# ---- bounds


def test_local_only_sends_nothing_and_goes_on_from_its_own() -> None:
    found = played("local", 2)
    for name in DATA:
        first = step(name, *START)
        assert near(numbers(found.own(name)), step(name, *step(name, *first)))  # and the personal step at the end
    assert numbers(found.state.adapters[GLOBAL]) == START
    assert all(not update.adapter for update in found.sent)


def test_central_takes_all_steps_of_a_cohort_on_all_rows() -> None:
    plan = METHODS["central"].over(BASE)
    assert (plan.training.steps, plan.cohort.count, plan.deal.pooled) == (4, 1, True)
    plan = METHODS["central"].over(plans.read(BASE, ["cohort.count=7", "training.steps=3"]))
    assert plan.training.steps == 21


# ---- the whole model; here its change is all of the weight


def whole(rounds: int, after: Callable[[float, float, int], float], pull: float = 0.0) -> float:
    """The weight after rounds in which the server goes where `after(now, mean, round)` says."""
    w = WEIGHT
    for turn in range(rounds):
        ends = {}
        for name in DATA:
            own = w
            for _ in range(2):
                own -= RATE / 4 * (slope(name, own) + pull * (own - w))
            ends[name] = own
        w = after(w, mean(ends), turn)
    return w


@pytest.mark.parametrize("name", ["fedavg-full", "fedprox-full", "fedadam-full"])
def test_the_whole_model(name: str) -> None:
    memory = [0.0, 0.0]

    def adam(now: float, to: float, turn: int) -> float:  # Reddi et al., algorithm 2, without bias correction
        memory[0] = 0.9 * memory[0] + 0.1 * (to - now)
        memory[1] = 0.99 * memory[1] + 0.01 * (to - now) ** 2
        return now + 0.001 * memory[0] / (math.sqrt(memory[1]) + 1e-3)

    plan = METHODS[name].over(plans.read(BASE, [f"training.lr={RATE / 4}"]))
    bank = plan.adapter.bank(Line(), plan.width)
    found = played(name, 3, 2, f"training.lr={RATE / 4}", "training.cohort=1")
    wanted = whole(3, adam if "adam" in name else lambda now, to, turn: to, 0.01 if "prox" in name else 0.0)
    assert list(bank.layout.tree(torch.zeros(1), 0)) == ["only.weight"]
    assert near(WEIGHT + float(found.state.adapters[GLOBAL]["only.weight"].item()), wanted)


# ---- adapters, one for all


def test_fedit_averages_each_factor() -> None:
    wanted = START
    for _ in range(2):
        wanted = apart(steps(*wanted))
    assert near(numbers(played("fedit", 2).state.adapters[GLOBAL]), wanted)


def test_fedprox_pulls_to_what_was_offered() -> None:
    ends = {}
    for name in DATA:
        a, b = START
        for _ in range(2):
            a, b = step(name, a, b, pull=0.01)
        ends[name] = (a, b)
    assert near(numbers(played("fedprox", 1, 2).state.adapters[GLOBAL]), apart(ends))


def test_fedadam_scales_each_factors_step() -> None:
    now, to = START, apart(steps(*START))
    moves = [to[at] - now[at] for at in (0, 1)]  # m = 0.1 d and v = 0.01 d^2 after one round, so m / sqrt(v) = sign
    wanted = [now[at] + 0.003 * 0.1 * moves[at] / (0.1 * abs(moves[at]) + 1e-3) for at in (0, 1)]
    assert near(numbers(played("fedadam", 1).state.adapters[GLOBAL]), (wanted[0], wanted[1]))


@pytest.mark.parametrize("name", ["exact", "flexlora"])
def test_the_mean_of_products(name: str) -> None:
    wanted = mean({name: a * b for name, (a, b) in steps(*START).items()})
    assert near(played(name, 1).product, wanted)


@pytest.mark.parametrize("name", ["flora", "stack"])
def test_increments_are_stacked(name: str) -> None:
    plan = METHODS[name].over(BASE)
    total = START[0] * START[1]
    for turn in (1, 2):
        (a,) = factors.orthonormal(pair_tree(*START), 1, seed_of(plan, turn))[KEY_A].flatten().tolist()
        ends = {name: step(name, a, 0.0, under=total) for name in DATA}
        total += mean({name: x * y for name, (x, y) in ends.items()})
    assert near(played(name, 2).product, total)


def seed_of(plan: Plan, turn: int) -> torch.Generator:
    from fedgen import seeds

    return seeds.generator(plan.share.seed, turn, "", "increment")  # type: ignore[attr-defined]


def test_seeded_sends_b_alone_and_adds_it_under_the_a_that_all_drew() -> None:
    found, total = played("seeded", 2), START[0] * START[1]
    for turn in (1, 2):
        (a,) = factors.orthonormal(pair_tree(*START), 1, seed_of(found.plan, turn))[KEY_A].flatten().tolist()
        assert abs(a) == pytest.approx(1)  # a row of length 1
        total += a * mean({name: step(name, a, 0.0, still="a", under=total)[1] for name in DATA})
    assert near(found.product, total)
    assert {key for update in found.sent for key in update.adapter} == {KEY_B}


def test_hetlora_weighs_by_the_size_of_the_product() -> None:
    ends = steps(*START)
    sizes = {name: abs(a * b) for name, (a, b) in ends.items()}
    a, b = (sum(sizes[name] * ends[name][at] for name in DATA) / sum(sizes.values()) for at in (0, 1))
    assert near(numbers(played("hetlora", 1).state.adapters[GLOBAL]), (a, b))


def test_hetlora_prunes_what_training_presses() -> None:
    """The second of two ranks is pressed hard; whoever has given it up is offered one rank from then on."""
    found = played("hetlora", 2, 2, "adapter.rank=2", "adapter.ranks=[2]", "training.press=3.0", wide=True)
    assert dict(found.state.ranks) == {"ann": 1, "bob": 1}
    assert [lora.rank(update.adapter) for update in found.sent] == [1, 1, 1, 1]
    assert load_checkpoint_of(found.state).ranks == found.state.ranks
    free = played("hetlora", 1, 2, "adapter.rank=2", "adapter.ranks=[2]", "training.press=0.0", wide=True)
    assert [lora.rank(update.adapter) for update in free.sent] != [1, 1]  # nothing presses: at least one keeps both


def load_checkpoint_of(state: State) -> State:
    """The state as it comes back from disk."""
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder) / "state", state)
        found = load_checkpoint(Path(folder) / "state")
    assert found is not None
    return found


def test_ffa_trains_and_sends_b_alone() -> None:
    found, (a, b) = played("ffa", 2), START
    for _ in range(2):
        b = apart(steps(a, b, still="a"))[1]
    assert near(numbers(found.state.adapters[GLOBAL]), (a, b))
    assert {key for update in found.sent for key in update.adapter} == {KEY_B}
    assert found.state.adapters[GLOBAL][KEY_A].item() == START[0]  # to the last bit


def test_rolora_trains_b_then_a() -> None:
    found, (a, b) = played("rolora", 2), START
    b = apart(steps(a, b, still="a"))[1]
    a = apart(steps(a, b, still="b"))[0]
    assert near(numbers(found.state.adapters[GLOBAL]), (a, b))
    assert [set(update.adapter) for update in found.sent] == [{KEY_B}, {KEY_B}, {KEY_A}, {KEY_A}]


def test_fedex_keeps_what_averaging_apart_loses() -> None:
    ends = steps(*START)
    a, b = apart(ends)
    found = played("fedex", 1)
    low, top = factors.split(found.state.adapters[GLOBAL], 1)
    assert near(numbers(top), (a, b))
    assert near(product(low), mean({name: x * y for name, (x, y) in ends.items()}) - a * b)
    assert abs(product(low)) > 1e-3  # or this would prove nothing
    again = {name: step(name, a, b, under=product(low)) for name in DATA}
    assert near(played("fedex", 2).product, product(low) + mean({name: x * y for name, (x, y) in again.items()}))


def test_residual_is_fedex_with_a_personal_step() -> None:
    one, two = played("residual", 2), played("fedex", 2)
    assert near(one.product, two.product)
    assert near(product(one.state.adapters[GLOBAL]), two.product)
    assert product(one.own("ann")) != pytest.approx(two.product)


def test_fair_mends_b() -> None:
    ends = steps(*START)
    (a, b), found = apart(ends), played("fair", 1)
    gap = mean({name: x * y for name, (x, y) in ends.items()}) - a * b
    ridge = found.plan.aggregate.ridge  # type: ignore[attr-defined]
    assert near(numbers(found.state.adapters[GLOBAL]), (a, b + gap * a / (a * a + ridge)))


def test_fedsvd_turns_a_to_length_one() -> None:
    (a, _), found = START, played("fedsvd", 1)
    b = apart(steps(*START, still="a"))[1]
    assert near(found.product, a * b)
    assert abs(numbers(found.state.adapters[GLOBAL])[0]) == pytest.approx(1)
    assert {key for update in found.sent for key in update.adapter} == {KEY_B}


def test_fedsb_trains_and_sends_the_square_between_two_frames() -> None:
    found = played("fedsb", 2)
    frame = found.plan.share.like(pair_tree(*START), 0, 1)
    a, column = numbers(frame)
    assert (abs(a), abs(column)) == (pytest.approx(1), pytest.approx(1))
    square = column * START[1]  # what of the first B lies in the frame
    for _ in range(2):
        square = mean({name: square - RATE * column * a * slope(name, WEIGHT + column * square * a) for name in DATA})
    assert near(found.product, column * square * a)
    assert all(update.adapter[KEY_B].shape == (1, 1) for update in found.sent)


# ---- one for each


def test_fedsa_shares_a_and_keeps_b() -> None:
    found, a, own = played("fedsa", 2), START[0], dict.fromkeys(DATA, START[1])
    for _ in range(2):
        ends = {name: step(name, a, own[name]) for name in DATA}
        a, own = apart(ends)[0], {name: b for name, (_, b) in ends.items()}
    assert near(numbers(found.state.adapters[GLOBAL]), (a, START[1]))
    assert {key for update in found.sent for key in update.adapter} == {KEY_A}
    for name in DATA:
        assert near(numbers(found.own(name)), step(name, a, own[name]))  # and the personal step at the end


def test_share_b_is_its_mirror() -> None:
    found, b, own = played("share-b", 2), START[1], dict.fromkeys(DATA, START[0])
    for _ in range(2):
        ends = {name: step(name, own[name], b) for name in DATA}
        b, own = apart(ends)[1], {name: a for name, (a, _) in ends.items()}
    assert near(numbers(found.state.adapters[GLOBAL]), (START[0], b))
    assert {key for update in found.sent for key in update.adapter} == {KEY_B}
    assert near(numbers(found.own("bob")), step("bob", own["bob"], b))


def test_fedper_keeps_the_last_layers() -> None:
    found = played("fedper", 2, 1, "share.last=1.0")  # of one layer, the last is all
    assert all(not update.adapter for update in found.sent)
    a, b = START
    for _ in range(3):
        a, b = step("ann", a, b)
    assert near(numbers(found.own("ann")), (a, b))


def test_ditto_pulls_its_own_to_what_was_offered() -> None:
    found, now = played("ditto", 2, 2), START
    own = dict.fromkeys(DATA, START)
    for _ in range(2):
        own = {name: step(name, *own[name], pull=0.1, to=now) for name in DATA}
        now = apart(steps(*now))
    assert near(numbers(found.state.adapters[GLOBAL]), now)
    assert all(near(numbers(found.own(name)), own[name]) for name in DATA)


def test_pfedme_sends_what_follows_its_inner_steps() -> None:
    found, ends = played("pfedme", 1, 4), {}
    for name in DATA:
        followed = inner = START
        for at in range(4):
            inner = step(name, *inner, pull=1.0, to=followed)
            if at % 2:  # w <- w - eta lambda (w - theta)
                followed = tuple(w + 0.5 * (theta - w) for w, theta in zip(followed, inner, strict=True))  # type: ignore[assignment]
        ends[name] = followed
    assert near(numbers(found.state.adapters[GLOBAL]), apart(ends))
    now = apart(ends)
    assert near(numbers(found.own("ann")), step("ann", *now, pull=1.0, to=now))


def test_perfedavg_takes_the_slope_where_a_step_would_lead() -> None:
    ends = {}
    for name in DATA:
        a, b = START
        g = slope(name, WEIGHT + a * b)
        x, y = a - 0.01 * g * b, b - 0.01 * g * a
        g = slope(name, WEIGHT + x * y)
        ends[name] = (a - RATE * g * y, b - RATE * g * x)
    found = played("perfedavg", 1)
    assert near(numbers(found.state.adapters[GLOBAL]), apart(ends))
    assert near(numbers(found.own("bob")), step("bob", *apart(ends)))


def test_what_is_frozen_stays_where_it_is_in_a_look_ahead_too() -> None:
    ends = {}
    for name in DATA:
        a, b = START
        ahead = b - 0.05 * slope(name, WEIGHT + a * b) * a
        ends[name] = (a, b - RATE * slope(name, WEIGHT + a * ahead) * a)
    found = played("ffa", 1, 1, "training.ahead=0.05")
    assert near(numbers(found.state.adapters[GLOBAL]), apart(ends))


@pytest.mark.parametrize(("name", "part"), [("apfl", 0.5), ("dual", 1.0)])
def test_an_own_adapter_beside_the_shared_one(name: str, part: float) -> None:
    found, now, own = played(name, 2, 2), START, {}
    for at in range(2):
        for client in DATA:
            if at == 0 and name == "apfl":  # the rest of the shared one
                own[client] = (START[0], (1 - part) * START[1])
            elif at == 0:  # nothing yet: A as the client draws it
                own[client] = (drawn(found, client), 0.0)
            own[client] = step(client, *own[client], under=part * now[0] * now[1])
        now = apart(steps(*now))
    for client in DATA:
        mixed = part * now[0] * now[1] + own[client][0] * own[client][1]  # on the shared one as it is now
        assert near(product(found.own(client)), mixed)


def drawn(found: Played, client: str) -> float:
    """The A that a client draws for its own adapter in the first round."""
    from fedgen import seeds

    fresh = found.site.bank.fresh(seeds.generator(0, 1, client, "own start"), 1)
    return numbers(fresh)[0]


def test_fedamp_gives_each_a_share_of_the_others() -> None:
    found = played("fedamp", 1)
    ends = steps(*START)
    for name, other in (("ann", "bob"), ("bob", "ann")):
        wanted = tuple(0.5 * x + 0.5 * y for x, y in zip(ends[name], ends[other], strict=True))
        assert near(numbers(found.state.adapters[f"cluster-{name}"]), wanted)  # type: ignore[arg-type]


def test_fedgen_edge_is_fedit_and_a_personal_step() -> None:
    found = played("fedgen-edge", 1)
    assert near(numbers(found.state.adapters[GLOBAL]), apart(steps(*START)))
    assert near(numbers(found.own("ann")), step("ann", *apart(steps(*START))))


# ---- what all of them keep to

HERE = [name for name in METHODS if name not in ("central", "clustered")]  # the clusters' own tests hold the last


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_a_plan_that_can_be_written_and_read(name: str, tmp_path: Path) -> None:
    plan = METHODS[name].over(BASE)
    (tmp_path / "plan.toml").write_text(plans.write(plan), "utf-8")
    assert plans.read(tmp_path / "plan.toml") == plan
    assert METHODS[name].title


@pytest.mark.parametrize("name", [name for name in HERE if not name.endswith("full")])
def test_no_message_but_those_of_the_rule_leaves_a_client(name: str) -> None:
    found, halves = played(name, 2, 2), {"a": {KEY_A}, "b": {KEY_B}, "none": set(), "square": {KEY_B}}
    share = found.plan.share
    half = "square" if name == "fedsb" else getattr(share, "half", "both")
    for update in found.sent:
        turns = {KEY_B} if update.round % 2 else {KEY_A}
        assert set(update.adapter) == (turns if half == "turns" else halves.get(half, {KEY_A, KEY_B}))
        assert set(update.metrics) == {"loss", "steps", "terms"}
        assert update.profile is None


ALIKE = {"ann": (1.0, 2.0, 1), "bob": (1.0, 2.0, 3)}  # the same rows, and more of them


@pytest.mark.parametrize("name", [name for name in HERE if name != "local" and not name.endswith("full")])
def test_equal_updates_come_to_what_one_client_alone_comes_to(name: str) -> None:
    one, two = played(name, 2, 2, data={"ann": ALIKE["ann"]}), played(name, 2, 2, data=ALIKE)
    assert near(product(two.state.adapters[GLOBAL]), product(one.state.adapters[GLOBAL]))
    moved = product(one.state.adapters[GLOBAL]) - START[0] * START[1]
    assert abs(moved) > 1e-6 or one.plan.share.keep  # a half that stays keeps the server's product where it was


@pytest.mark.parametrize("name", HERE)
def test_the_order_of_arrival_leaves_no_trace(name: str) -> None:
    lone = ("training.cohort=1",) if name.endswith("full") else ()
    one, two = played(name, 2, 2, *lone), played(name, 2, 2, *lone, turned=True)
    assert one.state.adapters.keys() == two.state.adapters.keys()
    for cluster, tree in one.state.adapters.items():
        assert all(torch.equal(tree[key], two.state.adapters[cluster][key]) for key in tree)


def test_a_method_that_counts_steps_wants_them_counted() -> None:
    with pytest.raises(PlanError, match="method 'Ditto': wanted steps"):
        METHODS["ditto"].over(plans.read(BASE, ["training.steps=0"]))
