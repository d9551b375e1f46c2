"""A device's own word: read strictly, and no plan makes it read, fetch or carry more than that says."""

import dataclasses
import tomllib
import typing
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from fedgen.backbones import Diffusion, Language, LanguageBackbone
from fedgen.client import Training
from fedgen.data import SOURCES, ByField, Deal, Digits, Folder, Jsonl
from fedgen.devices import Named, Unknown
from fedgen.encode import Folder as Reader
from fedgen.encode import Ngrams
from fedgen.errors import BackboneError, ClientError, DataError, PlanError
from fedgen.places.device import (
    NMCLI,
    NODE,
    USES,
    Consent,
    Device,
    Limits,
    backbone_of,
    encoder_of,
    holdings_of,
    hours_of,
    metered,
    plan_of,
    read,
    refusal,
    sample,
    width_of,
)
from fedgen.places.inprocess import shared_out
from fedgen.plan import SECTIONS, TABLES, Plan, toml_of
from fedgen.records import Use

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
DATA = '[data]\nkind = "folder"\npath = "notes"\n'


def written(folder: Path, text: str) -> Path:
    """The folder with this as its `node.toml`."""
    (folder / NODE).write_text(text, "utf-8")
    return folder


def refused(folder: Path) -> str:
    """The one line with which a `node.toml` is refused, from where it stands on."""
    with pytest.raises(PlanError) as caught:
        read(folder)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(f"node '{folder / NODE}': ")
    return line.removeprefix(f"node '{folder / NODE}': ")


def ada(**changes: Any) -> Device:
    """A device with data of its own."""
    return dataclasses.replace(Device("ada", Digits()), **changes)


def trial(share: str = "") -> Device:
    """A device without."""
    return Device("trial-1", consent=Consent(plan_data=True, share=share))


# --- what is read


def test_all_that_a_device_can_say_is_read(tmp_path: Path) -> None:
    text = """
name = "phone-of-ada"
[data]
kind = "jsonl"
path = "/home/ada/notes.jsonl"
answer = "text"
[limits]
memory = 512
threads = 2
hours = "22-6"
metered = false
[consent]
uses = ["train", "label"]
hub = true
[backbones]
"/srv/models/gpt2" = "/home/ada/models/gpt2"
"/srv/models/tiny" = "models/tiny"
"/srv/models/llama" = "hub:ada/llama"
"""
    device = read(written(tmp_path, text))
    assert device == Device(
        "phone-of-ada",
        Jsonl("/home/ada/notes.jsonl", "text"),
        Limits(512, 2, "22-6", False),
        Consent(("train", "label"), hub=True),
        {
            "/srv/models/gpt2": "/home/ada/models/gpt2",
            "/srv/models/tiny": str(tmp_path / "models" / "tiny"),
            "/srv/models/llama": "hub:ada/llama",
        },
    )


def test_a_device_may_say_what_it_is(tmp_path: Path) -> None:
    assert read(written(tmp_path, 'name = "ada"\nclass = "board"\n' + DATA)).kind == "board"
    assert hours_of("22-6") == (22.0, 6.0)
    assert hours_of("") == (0.0, 24.0)


def test_a_file_of_devices_is_read_for_trials_alone() -> None:
    plan = dataclasses.replace(Plan(), devices=Named("/etc/passwd"))
    assert plan_of(trial(), plan).devices == plan.devices
    assert plan_of(ada(), plan).devices == Unknown()


def test_little_need_be_said(tmp_path: Path) -> None:
    device = read(written(tmp_path, 'name = "ada"\n' + DATA))
    assert device == Device("ada", Folder(str(tmp_path / "notes")))
    assert set(typing.get_args(Use)) <= set(device.consent.uses) < set(USES) == {*device.consent.uses, "label"}
    assert (device.consent.plan_data, device.consent.hub, device.backbones) == (False, False, {})


def test_a_path_begins_at_home_or_at_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.chdir("/")
    assert read(written(tmp_path, 'name = "a"\n' + DATA.replace("notes", "~/n"))).data == Folder("/home/ada/n")
    assert read(written(tmp_path, 'name = "a"\n' + DATA)).data == Folder(str(tmp_path / "notes"))


# --- what is refused, in which words


NAMED, SECTION = 'name = "ada"\n', 'name = "ada"\n' + DATA
HOURS = (
    "limits.hours: wanted a text such as '22-6', from an hour below 24 until another up to 24, or '' for always, came "
)
SHARE = "consent.share: wanted a text such as '1/3', the first of every three, or '' for all, came "
USED = f"consent.uses: wanted a list of texts out of {', '.join(USES)}, came "
WRONG = [
    # keys and sections
    (SECTION + "[limit]\nmemory = 3", "'limit' is not one of name, class, data, limits, consent, backbones"),
    ('class = "fridge"\n' + SECTION,
     "class: wanted a text out of phone, tablet, laptop, board, gateway, or '' to be measured, came 'fridge'"),
    (NAMED + "limits = 3", "'limits' is a section, came 3; write [limits] and its keys below it"),
    (NAMED + 'backbones = ["x"]', "'backbones' is a section, came ['x']; write [backbones] and its keys below it"),
    (SECTION + "[limits]\nram = 3", "limits.ram: no such key; Limits has memory, threads, hours, metered"),
    (SECTION + "[consent]\nall = true", "consent.all: no such key; Consent has uses, plan_data, share, hub"),
    # the name
    (DATA, "name: wanted a text of one line that is not empty, came ''"),
    ('name = " "\n' + DATA, "name: wanted a text of one line that is not empty, came ' '"),
    ('name = "a\\nb"\n' + DATA, "name: wanted a text of one line that is not empty, came 'a\\nb'"),
    ("name = 7\n" + DATA, "name: wanted a text of one line that is not empty, came 7"),
    # the data
    (NAMED, "data: is missing; write [data], its kind and its keys (or consent.plan_data for a trial)"),
    (NAMED + '[data]\npath = "x"', f"data.kind: '' is not one of {', '.join(SOURCES)}"),
    (NAMED + '[data]\nkind = "disc"', f"data.kind: 'disc' is not one of {', '.join(SOURCES)}"),
    (NAMED + '[data]\nkind = ["folder"]', f"data.kind: ['folder'] is not one of {', '.join(SOURCES)}"),
    (NAMED + '[data]\nkind = "folder"', "data.path: is missing; Folder wants a text"),
    (NAMED + '[data]\nkind = "folder"\npath = 3', "data.path: wanted a text, came 3"),
    (NAMED + '[data]\nkind = "stdlib"\nlimit = -1', "data.limit: wanted a whole number at least 0, came -1"),
    (NAMED + '[data]\nkind = "hub"\nname = "x"\npicture = "p"\nprompt = "q"',
     "data: picture and prompt: a caption is named by text, came prompt = 'q'; use text"),
    (SECTION + "[consent]\nplan_data = true",
     "consent.plan_data: wanted false beside [data], came true; take one of them out"),
    # limits
    (SECTION + "[limits]\nmemory = -1", "limits.memory: wanted a whole number at least 0, came -1"),
    (SECTION + "[limits]\nmemory = 0.5", "limits.memory: wanted a whole number at least 0, came 0.5"),
    (SECTION + "[limits]\nthreads = -2", "limits.threads: wanted a whole number at least 0, came -2"),
    (SECTION + "[limits]\nthreads = true", "limits.threads: wanted a whole number at least 0, came True"),
    (SECTION + '[limits]\nmetered = "no"', "limits.metered: wanted true or false, came 'no'"),
    *[(SECTION + f"[limits]\nhours = {toml_of(text)}", HOURS + repr(text))
      for text in ("22", "22-25", "24-6", "5-5", "0-0", "a-b", "22-6-7", "-1-6", "22 - 6", "٢-٦", "1-" + 5000 * "9")],
    (SECTION + "[limits]\nhours = 22", HOURS + "22"),
    # consent
    (SECTION + '[consent]\nuses = ["train", "fly"]', USED + "['train', 'fly']"),
    (SECTION + '[consent]\nuses = "train"', USED + "'train'"),
    (SECTION + "[consent]\nuses = [1]", USED + "[1]"),
    (NAMED + "[consent]\nplan_data = 1", "consent.plan_data: wanted true or false, came 1"),
    (SECTION + '[consent]\nhub = "yes"', "consent.hub: wanted true or false, came 'yes'"),
    *[(NAMED + f"[consent]\nplan_data = true\nshare = {toml_of(text)}", SHARE + repr(text))
      for text in ("0/3", "4/3", "1", "1/0", "1-3", "x/y", " 1/3")],
    (NAMED + "[consent]\nplan_data = true\nshare = 3", SHARE + "3"),
    (SECTION + '[consent]\nshare = "1/3"',
     "consent: share: wanted with plan_data = true alone, came '1/3'; take it out"),
    # backbones
    (SECTION + '[backbones]\n"/srv/gpt2" = 3',
     'backbones."/srv/gpt2": wanted a text of one line that is not empty, came 3'),
    (SECTION + '[backbones]\n"/srv/gpt2" = ""',
     'backbones."/srv/gpt2": wanted a text of one line that is not empty, came \'\''),
    # TOML
    (NAMED + "[limits", "is not TOML: Expected ']' at the end of a table declaration (at end of document)"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "line"), WRONG, ids=[line[:70] for _, line in WRONG])
def test_a_wrong_word_is_refused_in_one_line(text: str, line: str, tmp_path: Path) -> None:
    assert refused(written(tmp_path, text)) == line


def test_a_folder_without_one_is_named(tmp_path: Path) -> None:
    assert refused(tmp_path) == "cannot be read (No such file or directory); wanted a TOML file"


# --- the newcomer's


@pytest.mark.parametrize("name", ["phone-of-ada", 'a "quoted" naïve \\ name'])
def test_a_newcomer_s_word_can_be_read(name: str, tmp_path: Path) -> None:
    assert read(written(tmp_path, sample(name))) == Device(name, Folder(str(tmp_path / "data")))
    assert read(written(tmp_path, sample(name, "2/3"))) == Device(name, None, consent=trial("2/3").consent)


@pytest.mark.parametrize("share", ["", "1/1"])
def test_a_newcomer_s_word_says_every_key(share: str) -> None:
    keys = tomllib.loads(sample("ada", share))
    assert keys["backbones"] == {}
    for section, part in (("limits", Limits), ("consent", Consent)):
        assert list(keys[section]) == [spot.name for spot in dataclasses.fields(part)]


def test_a_share_that_is_none_is_refused_when_read(tmp_path: Path) -> None:
    assert refused(written(tmp_path, sample("ada", "4/3"))) == SHARE + "'4/3'"


# --- whether it answers


def test_only_what_it_consents_to_is_done() -> None:
    device = ada(consent=Consent(("train", "check")))
    assert [refusal(device, use, NOON) for use in ("train", "check")] == ["", ""]
    assert refusal(device, "score", NOON) == "its consent is to train, check, not to score"
    assert refusal(ada(), "label", NOON) == "its consent is to train, check, score, encode, not to label"
    assert refusal(ada(consent=Consent(())), "train", NOON) == "its consent is to nothing, not to train"


@pytest.mark.parametrize(
    ("hours", "runs"),
    [
        ("", range(24)),
        ("22-6", [*range(6), 22, 23]),
        ("6-22", range(6, 22)),
        ("0-24", range(24)),
        ("20-0", range(20, 24)),
        ("20-24", range(20, 24)),
        ("23-22", [*range(22), 23]),
    ],
)
def test_turns_run_in_their_hours(hours: str, runs: Any) -> None:
    device = ada(limits=Limits(hours=hours))
    for hour in range(24):
        for minute in (0, 59):
            line = refusal(device, "train", NOON.replace(hour=hour, minute=minute))
            assert line == ("" if hour in runs else f"turns run here in the hours {hours} only")


Says = Callable[[str], None]


@pytest.fixture
def nmcli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Says:
    """Puts a program on the path that answers the question, and no other, with such lines; there is none before."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def says(body: str) -> None:
        asked = f'[ "$*" = "{" ".join(NMCLI[1:])}" ] && [ "$LC_ALL" = C ] || exit 2'
        (tmp_path / "nmcli").write_text(f"#!/bin/sh\n{asked}\n{body}\n")
        (tmp_path / "nmcli").chmod(0o755)

    return says


GUARDED = ada(limits=Limits(metered=False))
UNTOLD = "it refuses metered networks, and whether this is one cannot be told"


@pytest.mark.parametrize(
    ("states", "line"),
    [
        (["no"], ""),
        (["no (guessed)", "unknown"], ""),
        (["unknown", "yes"], "its network is metered"),
        (["yes (guessed)", "no"], "its network is metered"),
        (["unknown"], UNTOLD),
        ([], UNTOLD),
    ],
)
def test_a_metered_network_is_refused(states: list[str], line: str, nmcli: Says) -> None:
    nmcli("\n".join(f'echo "GENERAL.METERED:{state}"; echo' for state in states))
    assert refusal(GUARDED, "train", NOON) == line
    assert refusal(ada(), "train", NOON) == ""


def test_what_cannot_be_told_is_refused(nmcli: Says) -> None:
    assert refusal(GUARDED, "train", NOON) == UNTOLD
    nmcli("echo GENERAL.METERED:no; exit 8")  # NetworkManager is not running
    assert refusal(GUARDED, "train", NOON) == UNTOLD
    nmcli("echo GENERAL.METERED:no")
    assert (refusal(GUARDED, "train", NOON), metered(), metered(["none-such"])) == ("", False, None)


# --- which models


HERE = {"/srv/models/gpt2": "/home/ada/gpt2", "hub:openai/gpt2": "/home/ada/gpt2", "/srv/llama": "hub:ada/llama"}


def test_a_backbone_is_loaded_from_where_the_device_has_it() -> None:
    device = ada(backbones=HERE)
    model = Language("/srv/models/gpt2", length=64, device="cpu")
    assert backbone_of(device, model) == Language("/home/ada/gpt2", length=64, device="cpu")
    assert backbone_of(device, Diffusion("/srv/models/gpt2", size=8)) == Diffusion("/home/ada/gpt2", size=8)
    assert backbone_of(device, Language("hub:openai/gpt2")) == Language("/home/ada/gpt2")
    assert backbone_of(ada(), Language(length=64)) == Language("embedded", length=64)


@pytest.mark.parametrize("path", ["/srv/models/other", "/srv/models/gpt2/", "~/gpt2", "", "a\nb"])
def test_another_path_is_refused_with_the_line_to_add(path: str) -> None:
    with pytest.raises(BackboneError) as caught:
        backbone_of(ada(backbones=HERE), Language(path))
    assert str(caught.value) == (
        f"backbone: wanted a model that this device's node.toml names, came {toml_of(path)}; "
        f'add the line {toml_of(path)} = "where it lies here" under [backbones] there'
    )
    assert "\n" not in str(caught.value)


def test_the_line_that_is_asked_for_is_what_helps(tmp_path: Path) -> None:
    source = 'C:\\models "x"\nté'
    line = f'{toml_of(source)} = "models/x"'
    with pytest.raises(BackboneError) as caught:
        backbone_of(ada(), Language(source))
    assert line.partition(" = ")[0] in str(caught.value)
    device = read(written(tmp_path, f"{SECTION}[backbones]\n{line}\n"))
    assert backbone_of(device, Language(source)).source == str(tmp_path / "models" / "x")


@pytest.mark.parametrize("source", ["hub:openai/gpt2", "/srv/llama"])
def test_nothing_is_fetched_without_consent(source: str) -> None:
    with pytest.raises(BackboneError, match=r"came \"hub:.*\"; set consent.hub = true in its node.toml, or add the"):
        backbone_of(ada(backbones={"/srv/llama": "hub:ada/llama"}), Language(source))
    willing = ada(consent=Consent(hub=True), backbones={"/srv/llama": "hub:ada/llama"})
    assert backbone_of(willing, Language(source)).source in ("hub:openai/gpt2", "hub:ada/llama")


@pytest.mark.parametrize(
    "source",
    ["hub:/home/ada/secret", "hub:../secret", "hub:a/../../b", "hub:~/a", "hub:", "hub:a/.b", "hub:models/mine"],
)
def test_a_hub_s_name_never_leads_to_a_folder(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BackboneError, match="which is no 'hub:owner/name'; add the line"):
        backbone_of(ada(consent=Consent(hub=True)), Language(source))


def test_an_encoder_is_found_as_a_backbone_is() -> None:
    assert encoder_of(ada(backbones=HERE), Reader("/srv/models/gpt2")) == Reader("/home/ada/gpt2")
    assert encoder_of(ada(), Ngrams()) == Ngrams()
    for path in ("/srv/clip", "embedded", "hub:a/b"):  # none of which is anything but a path here
        with pytest.raises(BackboneError, match=f'encode.path: wanted .*, came "{path}"; add the line "{path}" = '):
            encoder_of(ada(consent=Consent(hub=True)), Reader(path))


def test_a_trial_reads_what_the_plan_names() -> None:
    assert backbone_of(trial(), Language("/srv/gpt2")) == Language("/srv/gpt2")
    assert encoder_of(trial(), Reader("/srv/clip")) == Reader("/srv/clip")
    mapped = dataclasses.replace(trial(), backbones=HERE)
    assert backbone_of(mapped, Language("/srv/models/gpt2")) == Language("/home/ada/gpt2")
    with pytest.raises(BackboneError, match=r"set consent\.hub = true"):
        backbone_of(trial(), Language("hub:a/b"))


# --- a plan as the device plays it


def test_a_plan_is_played_on_the_device_s_own() -> None:
    plan = Plan(backbone=Language("/srv/models/gpt2"), encode=Reader("/srv/models/gpt2"), data=Folder("/etc"))
    played = plan_of(ada(backbones=HERE, limits=Limits(memory=100)), plan)
    own = Language("/home/ada/gpt2"), Reader("/home/ada/gpt2"), Digits(), Deal(memory=100)
    assert played == dataclasses.replace(plan, backbone=own[0], encode=own[1], data=own[2], deal=own[3])
    little = Plan(deal=Deal(memory=7))
    assert [plan_of(device, little).deal.memory for device in (ada(), ada(limits=Limits(9)))] == [7, 7]
    assert plan_of(trial(), plan) == plan


def test_no_path_of_a_plan_is_forgotten() -> None:
    """Every text in a plan's parts: a new one that is a path on a device has to be dealt with as these are."""
    found = {
        f"{section}.{name}"
        for section, table in [*TABLES.items(), *((name, {"": part}) for name, part in SECTIONS.items())]
        for part in table.values()
        for name, hint in typing.get_type_hints(part).items()
        if hint is str
    }
    data = {name for name in found if name.startswith("data.")}  # the device's own, or a trial's
    server = {"quality.weights", "quality.clip", "fleet.folder", "ray.address"}
    no_path = {"backbone.device"}
    assert found - data - server - no_path == {"backbone.source", "encode.path", "devices.file"}


def test_all_of_a_device_s_documents_are_its_one_client_s(tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        (tmp_path / f"{name}.txt").write_text(name)
    documents, shares = holdings_of(ada(data=Folder(str(tmp_path))), Plan())
    assert shares == {"ada": [0, 1, 2]}
    assert sorted(document.text for document in documents) == ["one", "three", "two"]


def test_trials_share_the_plan_s_clients_out(tiny_text: Path) -> None:
    plan = Plan(data=Folder(str(tiny_text)), partition=ByField())
    documents, shares = shared_out(plan)
    found = [holdings_of(trial(share), plan) for share in ("1/4", "2/4", "3/4", "4/4")]
    assert [list(own) for _, own in found] == [["ann", "eve"], ["bob", "finn"], ["cleo"], ["dan"]]
    assert {name: held for _, own in found for name, held in own.items()} == shares
    assert all(seen == documents for seen, _ in found)
    assert holdings_of(trial(), plan) == (documents, shares)
    with pytest.raises(DataError, match="at least one of the plan's clients, came '7/7' of 6; choose a larger share"):
        holdings_of(trial("7/7"), plan)


# --- memory


@pytest.fixture(scope="module")
def backbone(tiny_backbone: Path) -> LanguageBackbone:
    return Language(str(tiny_backbone), length=32, device="cpu").load()


def test_a_pass_keeps_within_the_memory(backbone: LanguageBackbone) -> None:
    row = backbone.row_bytes()
    batch = 2**20 // row + 1  # so that a step takes between two and four MB
    least = -(-2 * batch * row // 2**20)
    training = Training(batch=batch, cohort=8)
    assert 2 < least <= 4
    assert width_of(ada(limits=Limits(least)), training, backbone) == 1
    assert width_of(ada(limits=Limits(3 * least)), training, backbone) == 3 * least * 2**20 // (2 * batch * row) < 8
    assert width_of(ada(limits=Limits(100 * least)), training, backbone) == 8
    assert width_of(ada(), Training(batch=1, cohort=3), backbone) == 3
    with pytest.raises(ClientError) as caught:
        width_of(ada(limits=Limits(least - 1)), training, backbone)
    assert str(caught.value) == (
        f"limits.memory: wanted at least {least} MB for a pass of {batch} rows of 'tiny', came {least - 1}; raise it"
    )
