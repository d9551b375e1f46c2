"""Plans: read strictly, refused with one line that says where, what was wanted, what came, and written back whole."""

import copy
from pathlib import Path
from typing import Any

import pytest

import fedgen
from fedgen import cli
from fedgen import plan as plans
from fedgen.aggregate import AGGREGATES, Exact
from fedgen.backbones import Diffusion, Language
from fedgen.client import Training
from fedgen.data import Deal, Digits, Dirichlet, Even, Folder, Jsonl, PennTreebank
from fedgen.errors import PlanError
from fedgen.outer import Momentum, Plain
from fedgen.personal import Keep, Nothing
from fedgen.plan import Adapter, Plan, Quality, read, write


def refused(source: Any, *settings: str) -> str:
    """The one line with which a plan is refused."""
    with pytest.raises(PlanError) as caught:
        read(source, settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- what is refused, in which words


WRONG: list[tuple[dict[str, Any], str]] = [
    # keys that are not there
    ({"rund": 3}, ("plan: 'rund' is not one of name, seed, rounds, place, guards, backbone, adapter, data, partition, "
                   "deal, training, encode, profile, cluster, hierarchy, exchange, cohort, devices, allot, share, "
                   "clip, compress, aggregate, outer, personal, evaluate, quality, ray, fleet")),
    ({"adapter": {"r": 4}}, "adapter.r: no such key; Adapter has rank, targets, ranks, of, last"),
    ({"data": {"path": "x"}}, "data.path: no such key; Stdlib has limit, modules, piece"),
    ({"personal": {"kind": "none", "epochs": 1}}, "personal.epochs: no such key; Nothing has no keys but kind"),
    # kinds
    ({"aggregate": {"kind": "men"}}, f"aggregate.kind: 'men' is not one of {', '.join(AGGREGATES)}"),
    ({"outer": {"kind": 3}}, "outer.kind: 3 is not one of plain, momentum, adam"),
    ({"outer": {"kind": ["adam"]}}, "outer.kind: ['adam'] is not one of plain, momentum, adam"),
    ({"place": "moon"}, "place: 'moon' is not one of inprocess, ray, fleet"),
    ({"training": {"optimizer": "lion"}}, "training.optimizer: 'lion' is not one of adamw, sgd"),
    ({"backbone": {"bits": 5}}, "backbone.bits: 5 is not one of 4, 8, 16"),
    ({"backbone": {"bits": 4.0}}, "backbone.bits: 4.0 is not one of 4, 8, 16"),
    ({"backbone": {"bits": True}}, "backbone.bits: True is not one of 4, 8, 16"),
    # sections
    ({"training": 3}, "plan: 'training' is a section, came 3; write [training] and its keys below it"),
    ({"data": [{"kind": "stdlib"}]},
     "plan: 'data' is a section, came [{'kind': 'stdlib'}]; write [data] and its keys below it"),
    ({"data": {"kind": "folder"}}, "data.path: is missing; Folder wants a text"),
    ({"data": {"kind": "jsonl", "path": "x"}}, "data.answer: is missing; Jsonl wants a text"),
    ({"partition": {"kind": "even"}}, "partition.clients: is missing; Even wants a whole number at least 1"),
    # types
    ({"rounds": "3"}, "rounds: wanted a whole number at least 1, came '3'"),
    ({"rounds": 3.0}, "rounds: wanted a whole number at least 1, came 3.0"),
    ({"rounds": True}, "rounds: wanted a whole number at least 1, came True"),
    ({"seed": {"a": 1}}, "seed: wanted a whole number at least 0, came {'a': 1}"),
    ({"name": 7}, "name: wanted a text, came 7"),
    ({"training": {"lr": "fast"}}, "training.lr: wanted a number above 0, came 'fast'"),
    ({"training": {"lr": False}}, "training.lr: wanted a number above 0, came False"),
    ({"adapter": {"targets": "q_proj"}}, "adapter.targets: wanted a list of texts, came 'q_proj'"),
    ({"adapter": {"targets": ["q_proj", 3]}}, "adapter.targets: wanted a list of texts, came ['q_proj', 3]"),
    # ranges
    ({"rounds": 0}, "rounds: wanted a whole number at least 1, came 0"),
    ({"seed": -1}, "seed: wanted a whole number at least 0, came -1"),
    ({"adapter": {"rank": 0}}, "adapter.rank: wanted a whole number at least 1, came 0"),
    ({"training": {"lr": 0}}, "training.lr: wanted a number above 0, came 0.0"),
    ({"training": {"dropout": 0.95}}, "training.dropout: wanted a number at least 0 and at most 0.9, came 0.95"),
    ({"training": {"warmup": -0.1}}, "training.warmup: wanted a number at least 0 and at most 1, came -0.1"),
    ({"cohort": {"fraction": 0}}, "cohort.fraction: wanted a number above 0 and at most 1, came 0.0"),
    ({"data": {"limit": -1}}, "data.limit: wanted a whole number at least 0, came -1"),
    ({"data": {"kind": "ptb", "path": "x", "block": 0}}, "data.block: wanted a whole number at least 1, came 0"),
    ({"partition": {"kind": "even", "clients": 0}}, "partition.clients: wanted a whole number at least 1, came 0"),
    ({"partition": {"kind": "dirichlet", "clients": 2, "alpha": 0}},
     "partition.alpha: wanted a number above 0, came 0.0"),
    ({"partition": {"kind": "dirichlet", "clients": 2, "topics": -1}},
     "partition.topics: wanted a whole number at least 0, came -1"),
    ({"deal": {"valid": -0.1}}, "deal.valid: wanted a number at least 0 and at most 1, came -0.1"),
    ({"deal": {"test": 1.5}}, "deal.test: wanted a number at least 0 and at most 1, came 1.5"),
    ({"deal": {"least": 0}}, "deal.least: wanted a whole number at least 1, came 0"),
    ({"deal": {"valid": 0.5, "test": 0.5}},
     "deal: valid and test: wanted shares that leave some to train, came valid = 0.5 and test = 0.5"),
    ({"quality": {"pictures": -1}}, "quality.pictures: wanted a whole number at least 0, came -1"),
    ({"quality": {"steps": 0}}, "quality.steps: wanted a whole number at least 1, came 0"),
    ({"quality": {"guidance": -0.5}}, "quality.guidance: wanted a number at least 0, came -0.5"),
    ({"quality": {"features": "fid"}}, "quality.features: 'fid' is not one of none, judge, resnet, inception"),
    # numbers that are none, texts that no file can hold, names that no folder can have
    ({"training": {"lr": float("nan")}}, "training.lr: wanted a number above 0, came nan"),
    ({"training": {"lr": float("inf")}}, "training.lr: wanted a number above 0, came inf"),
    ({"training": {"clip": float("inf")}}, "training.clip: wanted a number at least 0, came inf"),
    ({"deal": {"valid": float("nan")}}, "deal.valid: wanted a number at least 0 and at most 1, came nan"),
    ({"backbone": {"source": "a\udc80"}}, "backbone.source: wanted a text, came 'a\\udc80'"),
    ({"name": "../up"}, "name: wanted a name that a folder can have, came '../up'"),
    ({"name": ""}, "name: wanted a name that a folder can have, came ''"),
    ({"name": "a\x00b"}, "name: wanted a name that a folder can have, came 'a\\x00b'"),
]  # fmt: skip


@pytest.mark.parametrize(("keys", "line"), WRONG, ids=[line[:60] for _, line in WRONG])
def test_a_wrong_plan_is_refused_in_one_line(keys: dict[str, Any], line: str) -> None:
    before = copy.deepcopy(keys)
    assert refused(keys) == line
    assert repr(keys) == repr(before)


# --- parts that disagree


SENDS = {"turned": {"half": "b"}, "residual": {"kind": "top"}, "stack": {"kind": "increment"}}  # what such a rule takes


@pytest.mark.parametrize("kind", ["exact", "turned", "residual", "stack"])
def test_what_is_factored_anew_has_no_way_to_go_step_by_step(kind: str) -> None:
    for outer in ({"kind": "momentum"}, {"kind": "adam"}, {"lr": 0.5}):
        line = refused({"aggregate": {"kind": kind}, "outer": outer})
        assert line.startswith(f"aggregate and outer disagree: '{kind}' is factored anew each round")
        assert line.endswith("use outer.kind = 'plain' with lr = 1, or aggregate.kind = 'average'")
    plan = read({"aggregate": {"kind": kind}, "share": SENDS.get(kind, {}), "outer": {"lr": 1}})
    assert plan.aggregate == AGGREGATES[kind]()


@pytest.mark.parametrize("kind", ["turned", "residual", "stack"])
def test_what_begins_at_one_adapter_of_all_has_no_clusters(kind: str) -> None:
    line = refused({"aggregate": {"kind": kind}, "cluster": {"kind": "losses"}})
    assert line.startswith(f"aggregate and cluster disagree: updates of '{kind}' begin at the one adapter of all")
    assert read({"aggregate": {"kind": "exact"}, "cluster": {"kind": "losses"}}).aggregate == Exact()


DISAGREE = [
    ({"training": {"checkpoint": True, "dropout": 0.1}},
     "training.checkpoint and dropout: what is computed anew would drop out others; set one to 0"),
    ({"adapter": {"last": 0}}, "adapter.last: wanted a number above 0 and at most 1, came 0.0"),
    ({"training": {"micro": -1}}, "training.micro: wanted a whole number at least 0, came -1"),
    ({"share": {"half": "b"}, "aggregate": {"kind": "exact"}},
     ("share and aggregate: what share.kind = 'halves' sends so is not for aggregate.kind = 'exact'; "
      "choose average or turned")),
    ({"share": {"kind": "top"}},
     "share and aggregate: what share.kind = 'top' sends so is not for aggregate.kind = 'average'; choose residual"),
    ({"share": {"kind": "square"}, "outer": {"kind": "momentum"}},
     "share and outer: what is sent is no whole adapter; use outer.kind = 'plain' with lr = 1"),
    ({"share": {"half": "b"}, "cluster": {"kind": "losses"}},
     "share and cluster: clusters exchange whole adapters; let share.kind = 'halves' send both"),
    ({"share": {"half": "b", "keep": True}, "personal": {"kind": "keep"}},
     "share.keep and personal: both keep an own adapter; use personal.kind = 'finetune' or 'none'"),
    ({"share": {"keep": True}},
     ("share: keep: wanted a part that never travels, came half = 'both' and last = 0.0; "
      "name a half, or a share of last layers")),
    ({"adapter": {"ranks": [1, 9]}, "aggregate": {"kind": "exact"}},
     "adapter.ranks: wanted ranks from 1 to adapter.rank = 4, came 9"),
    ({"adapter": {"ranks": [1, 2]}},
     "adapter.ranks: several ranks want aggregate.kind = 'exact', 'changes', 'padded' or 'stack'"),
    ({"adapter": {"ranks": [1, "2"]}}, "adapter.ranks: wanted a list of whole numbers, came [1, '2']"),
    ({"allot": {"kind": "carried"}},
     "allot: several ranks want aggregate.kind = 'exact', 'changes', 'padded' or 'stack'"),
    ({"allot": {"kind": "carried"}, "aggregate": {"kind": "changes"}},
     "allot: 'carried' goes by clients' devices, and devices.kind = 'none' knows none; name them"),
    ({"allot": {"kind": "needed"}, "aggregate": {"kind": "padded"}, "devices": {"kind": "drawn"}},
     "allot: ranks that differ by layer want aggregate.kind = 'changes' or 'exact'"),
    ({"allot": {"kind": "needed"}, "aggregate": {"kind": "changes"}, "devices": {"kind": "drawn"},
      "personal": {"kind": "keep"}},
     "allot and personal: an own adapter has one rank in all layers; use personal.kind = 'finetune'"),
    ({"allot": {"kind": "needed"}, "aggregate": {"kind": "exact"}, "devices": {"kind": "drawn"},
      "share": {"prune": True}},
     "allot and share.prune: by need ranks differ by layer, and what is pruned has one; set it to false"),
    ({"allot": {"kind": "needed", "mean": 0.5}}, "allot.mean: wanted a number at least 1, came 0.5"),
    ({"allot": {"kind": "carried"}, "adapter": {"of": "weights"}, "devices": {"kind": "drawn"}},
     "allot: several ranks want aggregate.kind = 'exact', 'changes', 'padded' or 'stack'"),
    ({"adapter": {"ranks": [1, 2]}, "aggregate": {"kind": "padded"}, "cluster": {"kind": "losses"}},
     "adapter.ranks: clusters with several ranks want aggregate.kind = 'exact' or 'changes'"),
    ({"adapter": {"ranks": [1, 2]}, "aggregate": {"kind": "exact"},
      "cluster": {"kind": "kmeans", "by": "adapters"}},
     "adapter.ranks: adapters of several ranks cannot be compared; set cluster.by = 'profiles'"),
    ({"adapter": {"ranks": [1, 2]}, "aggregate": {"kind": "exact"}, "cluster": {"kind": "losses"},
      "hierarchy": {"split": 0.1}},
     "adapter.ranks: steps of several ranks cannot be told apart; set hierarchy.split = 0"),
    ({"adapter": {"ranks": [1, 2]}, "aggregate": {"kind": "exact"}, "cluster": {"kind": "losses"},
      "exchange": {"kind": "neighbours", "of": "adapters", "on": "factors"}},
     "adapter.ranks: several ranks have no factors in common; set exchange.on = 'products'"),
    ({"adapter": {"ranks": [1, 2]}, "aggregate": {"kind": "exact"}, "cluster": {"kind": "losses"},
      "exchange": {"kind": "shared_a"}},
     "adapter.ranks: several ranks have no factors in common; set exchange.on = 'products'"),
    ({"devices": {"kind": "drawn"}, "fleet": {"buffer": 2, "spare": 0.5}},
     "fleet.buffer and fleet.spare: without rounds nobody is waited for in vain; set spare = 0"),
    ({"devices": {"kind": "drawn"}, "fleet": {"buffer": 2}, "aggregate": {"kind": "exact"}},
     "fleet.buffer: late changes are laid on newer factors; use aggregate.kind = 'average'"),
    ({"devices": {"kind": "drawn"}, "fleet": {"buffer": 2}, "cluster": {"kind": "losses"}},
     "fleet.buffer: clusters that rounds form need rounds; set buffer = 0"),
    ({"place": "fleet", "devices": {"kind": "drawn"}},
     "devices: a fleet's nodes say themselves what they are; set devices.kind = 'none'"),
    ({"devices": {"kind": "drawn", "classes": ["phone", "fridge"]}},
     "devices: classes: 'fridge' is not one of phone, tablet, laptop, board, gateway"),
    ({"devices": {"kind": "drawn", "classes": []}},
     "devices: classes: wanted one or more of phone, tablet, laptop, board, gateway, came none"),
    ({"devices": {"kind": "drawn", "shares": [1, 2]}},
     "devices: shares: wanted one a class, or none at all, came 2 for 5 classes"),
    ({"devices": {"kind": "drawn", "classes": ["phone"], "shares": [0]}},
     "devices: shares: wanted chances of 0 and more, not all 0, came [0.0]"),
    ({"devices": {"kind": "drawn", "shares": ["all"]}}, "devices.shares: wanted a list of numbers, came ['all']"),
    ({"place": "fleet", "backbone": {"kind": "diffusion"}, "data": {"kind": "glyphs"}, "quality": {"pictures": 2}},
     "quality.pictures: are held against the clients' own, which stay on their devices; set it to 0"),
    ({"place": "fleet", "deal": {"pooled": True}},
     "deal.pooled: clients' rows stay on their devices; leave it away, or use place = 'inprocess'"),
    ({"place": "fleet", "fleet": {"buffer": 2, "spare": 0.5}},
     "fleet.buffer and fleet.spare: without rounds nobody is waited for in vain; set spare = 0"),
    ({"place": "fleet", "fleet": {"buffer": 2}, "aggregate": {"kind": "exact"}},
     "fleet.buffer: late changes are laid on newer factors; use aggregate.kind = 'average'"),
    ({"place": "fleet", "fleet": {"buffer": 2}, "cluster": {"kind": "losses"}},
     "fleet.buffer: clusters that rounds form need rounds; set buffer = 0"),
]  # fmt: skip


@pytest.mark.parametrize(("keys", "line"), DISAGREE)
def test_what_is_sent_and_what_is_done_with_it_must_agree(keys: dict[str, Any], line: str) -> None:
    assert refused(keys) == line


def test_momentum_is_for_sgd() -> None:
    line = "training.momentum: AdamW has its own; set training.optimizer = 'sgd', or momentum = 0"
    assert refused({"training": {"momentum": 0.9}}) == line
    assert read({"training": {"momentum": 0.9, "optimizer": "sgd"}}).training.momentum == 0.9


def test_only_a_diffusion_model_draws() -> None:
    line = "quality.pictures: only a backbone of kind 'diffusion' draws any; set it to 0"
    assert refused({"quality": {"pictures": 4}}) == line
    assert refused({"backbone": {"kind": "diffusion"}, "quality": {"pictures": 4}}, "backbone.kind=language") == line
    plan = {"backbone": {"kind": "diffusion"}, "data": {"kind": "glyphs"}, "quality": {"pictures": 4}}
    assert read(plan).quality == Quality(pictures=4)


@pytest.mark.parametrize("features", ["resnet", "inception"])
def test_networks_that_do_not_come_with_the_package_want_their_file(features: str) -> None:
    line = f"quality.weights: {features} wants the file of its weights, came none"
    assert refused({"quality": {"features": features}}) == line
    assert read({"quality": {"features": features, "weights": "w"}}).quality == Quality(features=features, weights="w")
    assert read({"quality": {"features": "judge"}}).quality.weights == ""


@pytest.mark.parametrize("demo", list(cli.What))
def test_the_demos_are_plans(demo: cli.What) -> None:
    plan = read(cli.DEMOS / f"{demo}.toml")
    assert isinstance(plan.backbone, Diffusion) == bool(plan.quality.pictures) == (demo is cli.What.images)
    assert read(plan) == plan


# --- files


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = tmp_path / "no-such.toml"
    assert refused(path) == f"plan '{path}': cannot be read (No such file or directory); wanted a TOML file"
    assert refused(str(tmp_path)) == f"plan '{tmp_path}': cannot be read (Is a directory); wanted a TOML file"


def test_broken_toml_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text("rounds = 2\n[training]\nlr = = 3\n")
    line = refused(path)
    assert line.startswith(f"plan '{path}': is not TOML: ")
    assert "line 3" in line


def test_a_plan_that_is_not_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_bytes('name = "café"\n'.encode("latin-1"))
    assert refused(path).startswith(f"plan '{path}': is not TOML: 'utf-8' codec can't decode byte 0xe9")


def test_a_plan_with_a_byte_order_mark_and_other_newlines(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_bytes(b'\xef\xbb\xbfname = "mark"\r\nrounds = 3\r\n')
    assert (read(path).name, read(str(path)).rounds) == ("mark", 3)


# --- settings


def test_settings_of_every_form() -> None:
    settings = [
        "rounds=3", "name = other ", "training.lr=1e-4", "training.epochs=2", "training.optimizer=sgd",
        'backbone.source="a=b"', 'adapter.targets=["q_proj", "k_proj"]', "data.kind=folder", "data.path=/some/where",
        "cohort.fraction=1", "training.lr=2",
    ]  # fmt: skip
    plan = read({"rounds": 9, "training": {"epochs": 5, "batch": 7}}, settings)
    assert (plan.rounds, plan.name, plan.backbone.source) == (3, "other", "a=b")
    assert plan.training == Training(lr=2.0, epochs=2, batch=7, optimizer="sgd")
    assert plan.adapter.targets == ("q_proj", "k_proj")
    assert plan.data == Folder("/some/where")


def test_settings_leave_the_plan_that_they_are_laid_over_as_it_was() -> None:
    keys: dict[str, Any] = {"training": {"epochs": 5}}
    assert read(keys, ["training.epochs=2", "adapter.rank=2"]).training.epochs == 2
    assert keys == {"training": {"epochs": 5}}


def test_another_kind_takes_over_the_keys_that_it_knows_and_drops_the_others() -> None:
    keys: dict[str, Any] = {"personal": {"kind": "finetune", "steps": 7}, "data": {"kind": "stdlib", "limit": 9}}
    assert read(keys, ["personal.kind=keep"]).personal == Keep(steps=7)
    assert read(keys, ["personal.kind=none"]).personal == Nothing()
    assert read(keys, ["data.path=here", "data.kind=folder"]).data == Folder("here")
    assert refused(keys, "personal.steps=3", "personal.kind=none").startswith("personal.steps: no such key")
    assert refused(keys, "personal.kind=[1]") == "personal.kind: [1] is not one of none, finetune, keep, added, beside"
    assert keys["personal"] == {"kind": "finetune", "steps": 7}


NONSENSE = [
    ("rounds", "--set rounds: wanted section.key=value, such as training.epochs=2"),
    ("=3", "--set =3: wanted section.key=value, such as training.epochs=2"),
    ("training.=3", "--set training.=3: wanted section.key=value, such as training.epochs=2"),
    ("rounds.x=3", "--set rounds.x=3: 'rounds' is a value, not a section"),
    ("rounds=", "rounds: wanted a whole number at least 1, came ''"),
    ("rounds=true", "rounds: wanted a whole number at least 1, came True"),
    ("training=3", "plan: 'training' is a section, came 3; write [training] and its keys below it"),
    ("train.lr=3", "plan: 'train' is not one of name, seed, rounds, place,"),
    ("training.lr=nan", "training.lr: wanted a number above 0, came nan"),
    ("training.optimizer=Adam", "training.optimizer: 'Adam' is not one of adamw, sgd"),
]


@pytest.mark.parametrize(("setting", "line"), NONSENSE)
def test_settings_that_make_no_sense(setting: str, line: str) -> None:
    assert refused({"rounds": 2}, setting).startswith(line)


# --- written and read again


PLANS = [
    Plan(),
    Plan(name='quo"te \\ ü', seed=2**70, rounds=3, adapter=Adapter(7, ("q_proj", "model.layers.0.self_attn.v_proj"))),
    Plan(backbone=Language("a\tb\x7f\n\u2028'\"\x00", length=9, dtype="bfloat16", bits=8), data=Folder("\x1b[0m")),
    Plan(data=Jsonl("p", "a", owner="o"), partition=Dirichlet(3, 1e-9, 4), deal=Deal(0.0, 0.3, "tail", 2, "drop")),
    Plan(data=PennTreebank("x", 3), partition=Even(9), outer=Momentum(0.1 + 0.2, 0.7), personal=Keep(lr=1e22)),
    Plan(backbone=Diffusion("a b"), data=Digits(), quality=Quality(3, 2, 9, 1.5, "inception", '~/w "x".pt', "clip")),
    Plan(aggregate=Exact("uniform"), outer=Plain(), personal=Nothing(), training=Training("sgd", momentum=0.5)),
]


@pytest.mark.parametrize("plan", PLANS, ids=range(len(PLANS)))
def test_written_and_read_again_it_is_the_same(plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_bytes(write(plan).encode())
    assert read(path) == plan
    assert write(read(path)) == write(plan)
    assert read(plan) == plan


@pytest.mark.parametrize(
    "kind", [(section, kind) for section, table in plans.TABLES.items() for kind in table], ids=".".join
)
def test_every_kind_can_be_written_and_read(kind: tuple[str, str]) -> None:
    section, name = kind
    part = plans.TABLES[section][name]
    needed = {"path": "p", "answer": "a", "name": "n", "clients": 3, "file": "f"}
    known = {key: value for key, value in needed.items() if key in part.__annotations__}
    beside: dict[str, dict[str, Any]] = {
        "cluster": {"encode": {"kind": "ngrams"}},
        "exchange": {"cluster": {"kind": "losses"}},
        "share.increment": {"aggregate": {"kind": "stack"}},
        "share.top": {"aggregate": {"kind": "residual"}},
        "allot.carried": {"aggregate": {"kind": "changes"}, "devices": {"kind": "drawn"}},
        "allot.needed": {"aggregate": {"kind": "changes"}, "devices": {"kind": "drawn"}},
        "aggregate.turned": {"share": {"half": "b"}},
        "aggregate.residual": {"share": {"kind": "top"}},
        "aggregate.stack": {"share": {"kind": "increment"}},
    }
    more = beside.get(section) or beside.get(f"{section}.{name}", {})
    plan = read({section: {"kind": name} | known, **more})
    assert type(getattr(plan, section)) is part
    assert f'\n[{section}]\nkind = "{name}"\n' in write(plan)
    assert read(plan) == plan


# --- plans made in Python are looked at as well


def test_a_plan_made_in_python_is_held_to_the_same_ranges() -> None:
    assert refused(Plan(rounds=0)) == "rounds: wanted a whole number at least 1, came 0"
    assert refused(Plan(training=Training(lr=-1.0))) == "training.lr: wanted a number above 0, came -1.0"
    assert refused(Plan(deal=Deal(valid=-0.5))).startswith("deal.valid: wanted a number at least 0")
    assert refused(Plan(training=Training(lr=float("nan")))) == "training.lr: wanted a number above 0, came nan"


def test_settings_are_laid_over_a_plan_made_in_python() -> None:
    assert read(Plan(rounds=4), ["training.epochs=3"]) == Plan(rounds=4, training=Training(epochs=3))


def test_run_refuses_a_wrong_plan_before_anything_is_there(tmp_path: Path) -> None:
    for plan in ({"rounds": 0}, Plan(rounds=0)):
        with pytest.raises(PlanError, match="rounds: wanted a whole number at least 1, came 0"):
            fedgen.run(plan, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
