"""Whole runs of clients with ranks of their own: by device, by need, in clusters, stopped and resumed."""

from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import fedgen
from fedgen import Run, factors, lora
from fedgen import plan as plans
from fedgen.places import inprocess, resume, silent
from fedgen.records import GLOBAL, Report
from fedgen.report.one import write
from fedgen.screen import Screen

NARROW = {"ann", "bob", "cleo"}  # who carries rank 2; the others carry all
NAMES = sorted({"dan", "eve", "finn"} | NARROW)
DEVICE = "speed = 1e15\nup = 1e12\ndown = 1e12\n"
CHANGES = ["aggregate.kind=changes", "adapter.rank=8", "personal.kind=none"]
BY_DEVICE = [*CHANGES, "allot.kind=carried"]
BY_NEED = [*CHANGES, "allot.kind=needed", "allot.mean=3", "rounds=3"]


@pytest.fixture(scope="module")
def mixed(tiny_plan: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The tiny plan, of whose six clients three have the memory for rank 2, to the byte."""
    plan = plans.read(tiny_plan, CHANGES)
    backbone = plan.backbone.load()
    load = inprocess.place(inprocess.settle(plan, backbone), backbone, None, silent).load
    assert load is not None
    named = tmp_path_factory.mktemp("devices") / "devices.toml"
    sizes = {"narrow": load.memory(2), "wide": load.memory(8)}
    classes = [f"[classes.{name}]\nmemory = {size}\n{DEVICE}" for name, size in sizes.items()]
    clients = [f'{name} = "{"narrow" if name in NARROW else "wide"}"' for name in NAMES]
    named.write_text("\n".join([*classes, "[clients]", *clients]), "utf-8")
    return tiny_plan | {"cohort": {"count": 6}, "devices": {"kind": "named", "file": str(named)}}


@pytest.fixture(scope="module")
def needed(mixed: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Run:
    return fedgen.run(mixed, tmp_path_factory.mktemp("runs") / "needed", settings=BY_NEED)


def test_each_client_trains_what_its_device_carries(mixed: dict[str, Any], tmp_path: Path) -> None:
    run = fedgen.run(mixed, tmp_path / "run", settings=BY_DEVICE)
    for line in run.journal:
        assert line["ranks"]["clients"] == {name: 2.0 if name in NARROW else 8.0 for name in NAMES}
        assert set(line["ranks"]["layers"].values()) == {5.0}
        assert not line["failures"]
    assert lora.rank(run.adapter(GLOBAL)[0]) == 8
    assert run.facts["devices"] == {"narrow": 3, "wide": 3}


def test_a_budget_goes_where_it_is_needed(needed: Run) -> None:
    first, *later = needed.journal
    assert first["ranks"]["clients"] == {name: 2.0 if name in NARROW else 8.0 for name in NAMES}  # all they carry
    numbers = {path: len(pair) for path, pair in sizes(needed).items()}
    assert len(set(later[0]["ranks"]["layers"].values())) > 1  # layers are no longer alike, nor are clients
    assert len(set(later[0]["ranks"]["clients"].values())) > 1
    for line in later:
        ranks = line["ranks"]
        assert all(1 <= ranks["clients"][name] <= 2 for name in NARROW)
        spent = sum(ranks["layers"][path] * cost for path, cost in numbers.items())
        assert 0.9 * 3 * sum(numbers.values()) < spent <= 3 * sum(numbers.values()) * (1 + 1e-9)
        assert line["up"] < 0.7 * first["up"]


def sizes(run: Run) -> dict[str, range]:
    """How many numbers a rank of each layer takes."""
    return {
        pair.path: range((pair.a.numel() + pair.b.numel()) // len(pair.a))
        for pair in lora.pairs(run.adapter(GLOBAL)[0])
    }


def test_compressed_offers_and_updates_have_ranks_by_layer_too(mixed: dict[str, Any], tmp_path: Path) -> None:
    packed = ['guards=["compress"]', "compress.bits=8", "compress.down=8"]
    run = fedgen.run(mixed, tmp_path / "run", settings=[*BY_NEED, *packed])
    assert not [failure for line in run.journal for failure in line["failures"]]
    assert len(set(run.journal[1]["ranks"]["clients"].values())) > 1


def test_the_page_says_where_rank_went(needed: Run) -> None:
    page = write(needed).read_text("utf-8")
    section = page.split("<h2>Ranks</h2>")[1].split("</section>")[0]
    assert section.count("<figure>") == 2
    for figure in ("Effective rank", "What averaging factors would miss"):
        assert f"<h3>{figure}</h3>" in section
    ranks = [line["ranks"] for line in needed.journal]
    row = [f"{found['devices']['wide']:.2f}" for found in ranks]
    mean = sum(found["devices"]["wide"] for found in ranks) / len(ranks)
    assert f'<th scope="row">wide</th><td>{row[0]}</td><td>{row[-1]}</td><td>{mean:.2f}</td>' in section
    path = "model.layers.0.self_attn.q_proj"
    cells = section.split(f'<th scope="row">{path}</th>')[1].split("</tr>")[0].split("</td>")[:-1]
    assert [cell.rpartition(">")[2] for cell in cells] == [f"{found['layers'][path]:.2f}" for found in ranks]


def test_the_page_of_a_run_of_one_rank_has_no_such_tables(tiny_run: Run) -> None:
    assert "<h2>Ranks</h2>" not in write(tiny_run).read_text("utf-8")


def test_the_screen_says_the_mean_rank(mixed: dict[str, Any], needed: Run) -> None:
    out = Console(file=StringIO(), width=200)
    line = {key: value for key, value in needed.journal[0].items() if key != "failures"}
    with Screen(out) as screen:
        screen.tell(Report(**line, failures=()))
    assert "mean rank 5.0" in out.file.getvalue()  # type: ignore[attr-defined]


class StoppedError(Exception):
    """Here the run is stopped."""


def test_a_run_by_need_that_is_stopped_goes_on_as_if_it_were_not(
    mixed: dict[str, Any], needed: Run, tmp_path: Path
) -> None:
    def tell(event: object) -> None:
        if isinstance(event, Report) and event.round == 2:
            raise StoppedError

    with pytest.raises(StoppedError):
        fedgen.run(mixed, tmp_path / "needed", settings=BY_NEED, tell=tell)
    run = resume(tmp_path / "needed")
    found, wanted = run.adapter(GLOBAL)[0], needed.adapter(GLOBAL)[0]
    assert all(found[key].equal(wanted[key]) for key in wanted)
    assert [line["ranks"] for line in run.journal] == [line["ranks"] for line in needed.journal]
    assert run.outcome["clients"] == needed.outcome["clients"]


@pytest.mark.parametrize("aggregate", ["changes", "exact"])
@pytest.mark.parametrize("evidence", ["kmeans", "losses"])
def test_clusters_of_clients_with_several_ranks(
    aggregate: str, evidence: str, tiny_plan: dict[str, Any], tmp_path: Path
) -> None:
    """Clusters exchange their products at the server's rank, whatever ranks their members have."""
    clusters = ["encode.kind=ngrams", f"cluster.kind={evidence}", "cluster.count=2", "exchange.kind=neighbours"]
    ranks = [f"aggregate.kind={aggregate}", "adapter.rank=4", "adapter.ranks=[1, 4]", "cohort.count=6"]
    run = fedgen.run(tiny_plan, tmp_path / "run", settings=[*clusters, *ranks])
    assert not [failure for line in run.journal for failure in line["failures"]]
    assert not run.outcome["failures"]
    for name in [GLOBAL, *set(run.clusters["where"].values())]:
        assert factors.ranks_of(run.adapter(name)[0]) == dict.fromkeys(sizes(run), 4)
    assert {name: lora.rank(run.adapter(f"client/{name}")[0]) for name in NAMES} == {
        name: (1, 4)[at % 2] for at, name in enumerate(NAMES)
    }
