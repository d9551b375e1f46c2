"""The lists of models and runs, what an admin does to them, what a monitor reads, and the page of the API."""

import asyncio
import json
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

import fedgen
from fedgen import Run
from fedgen.serve.api import Door, app
from fedgen.serve.api.answers import packed
from fedgen.serve.house import House
from fedgen.serve.keys import Keys, Who, add_key

Ask = Callable[..., httpx.Response]


def models(ask: Ask, who: str = "ann") -> dict[str, dict[str, Any]]:
    return {one["id"]: one for one in ask("GET", "/v1/models", who=who).json()["data"]}


def test_a_model_says_what_it_is_and_no_path(ask: Ask, text_run: Run) -> None:
    found = models(ask)
    assert next(iter(found)) == "stories:backbone"
    assert found["stories:backbone"]["parent"] is None
    for name in ("global", "cluster-1"):
        card, one = text_run.adapter(name)[1], found[f"stories:{name}"]
        assert one["parent"] == "stories:backbone"
        assert one["root"] == f"stories@{card.hash[:12]}"
        told = one["fedgen"]
        assert (told["hash"], told["rank"], told["round"], told["kind"]) == (
            card.hash,
            card.rank,
            2,
            name.partition("-")[0],
        )
        assert told["metrics"] == pytest.approx(card.metrics)
    assert found["stories:global"]["fedgen"]["members"] == 6
    assert found["stories:user/ann"]["fedgen"]["owner"] == "ann"
    assert "stories:global@round-1" in found
    assert str(text_run.folder) not in json.dumps(found)
    assert ask("GET", "/v1/models/stories:global").json() == found["stories:global"]


def test_a_gain_is_that_of_its_own_clients(ask: Ask, text_run: Run) -> None:
    def fall(client: str, kind: str) -> float:
        scores = text_run.scores[client]
        return 1 - math.exp(scores[kind].loss / scores[kind].terms - scores["backbone"].loss / scores["backbone"].terms)

    found, where = models(ask), text_run.clusters["where"]
    assert found["stories:user/ann"]["fedgen"]["gain"] == pytest.approx(fall("ann", "personal"))
    inside = [client for client in text_run.scores if where[client] == "cluster-1"]
    mean = sum(fall(client, "cluster") for client in inside) / len(inside)
    assert found["stories:cluster-1"]["fedgen"]["gain"] == pytest.approx(mean)
    assert found["stories:backbone"]["fedgen"]["gain"] is None


def test_a_run_tells_its_course_and_names_the_askers_own_alone(ask: Ask, text_run: Run) -> None:
    stories, digits = ask("GET", "/v1/runs").json()
    assert (stories["name"], stories["type"], digits["type"]) == ("stories", "text", "image")
    assert [turn["round"] for turn in stories["curve"]] == [1, 2]
    assert stories["curve"][0]["up"] == text_run.journal[0]["up"]
    assert stories["measure"] == {"name": "perplexity", "lower_is_better": True}
    assert sum(group["members"] for group in stories["clusters"]) == len(stories["points"]) == 6
    assert [point["name"] for point in stories["points"] if point["own"]] == ["ann"]
    assert {point["name"] for point in stories["points"] if not point["own"]} == {""}
    assert stories["gains"].keys() == {"global", "cluster", "personal"}
    assert stories["encode"]["kind"] == "ngrams"
    assert stories["encode"]["width"] == 64
    assert 0 < stories["saved"] < 1


# ---- admin


def test_a_bundle_is_loaded_used_pinned_and_taken_away(ask: Ask) -> None:
    def done(path: str, body: Any = None, status: int = 200) -> str:
        answer = ask("POST", path, who="admin", json=body)
        assert answer.status_code == status, answer.text
        return str(answer.json().get("message") or answer.json()["error"]["message"])

    body = {"lora_name": "stories:tried/one", "lora_path": "cluster-1"}
    assert "tried/one" in done("/v1/load_lora_adapter", body)
    prompt = {"prompt": "the quick", "max_tokens": 5, "temperature": 0}
    texts = [
        ask("POST", "/v1/completions", json=prompt | {"model": name}).json()["choices"]
        for name in ("tried/one", "cluster-1")
    ]
    assert texts[0] == texts[1]
    assert "load_inplace" in done("/v1/load_lora_adapter", body | {"lora_path": "global"}, 400)
    done("/v1/load_lora_adapter", body | {"lora_path": "global", "load_inplace": True})
    listed = {one["id"]: one["fedgen"] for one in ask("GET", "/v1/lora_adapters", who="admin").json()["data"]}
    assert listed["stories:tried/one"]["hash"] == listed["stories:global"]["hash"]
    assert listed["stories:tried/one"]["kind"] == "loaded"
    assert "stories:backbone" not in listed
    done("/v1/lora_adapters/tried/one/pin")
    assert models(ask)["stories:tried/one"]["fedgen"]["pinned"]
    done("/v1/lora_adapters/stories:tried%2Fone/unpin")
    assert not models(ask)["stories:tried/one"]["fedgen"]["pinned"]
    done("/v1/lora_adapters/tried/one/rollback")
    assert models(ask)["stories:tried/one"]["fedgen"]["hash"] == listed["stories:cluster-1"]["hash"]
    done("/v1/unload_lora_adapter", {"lora_name": "tried/one"})
    assert "stories:tried/one" not in models(ask)
    assert "is not here" in done("/v1/unload_lora_adapter", {"lora_name": "stories:tried/one"}, 404)
    assert "is not here" in done("/v1/lora_adapters/stories:tried/one/pin", None, 404)
    said = "2 runs are served; name one: 'stories:tried/one', 'digits:tried/one'"
    assert said in done("/v1/load_lora_adapter", body | {"lora_name": "tried/one"}, 404)
    assert ask("GET", "/v1/models/global").status_code == 404  # both runs have one


@pytest.mark.parametrize(
    "path", ["../plan.toml", "..", "/etc", ".", "", "nothing", "global/../../adapters/global/..", "a\0b"]
)
def test_a_bundle_lies_below_the_folder_for_it(ask: Ask, server: SimpleNamespace, path: str) -> None:
    before = models(ask, "admin")
    answer = ask("POST", "/v1/load_lora_adapter", who="admin", json={"lora_name": "stories:out", "lora_path": path})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "lora_path")
    assert str(server.within.parent) not in answer.text
    assert models(ask, "admin") == before


def test_a_damaged_bundle_leaves_the_old_one(ask: Ask, server: SimpleNamespace, image_run: Run) -> None:
    spoilt = server.within / "spoilt"
    try:
        shutil.copytree(server.within / "global", spoilt)
        content = bytearray((spoilt / "adapter_model.safetensors").read_bytes())
        content[-3] ^= 255
        (spoilt / "adapter_model.safetensors").write_bytes(content)
        other = shutil.copytree(image_run.folder / "adapters" / "global", server.within / "other")
        body = {"lora_name": "stories:kept", "lora_path": "cluster-1"}
        assert ask("POST", "/v1/load_lora_adapter", who="admin", json=body).status_code == 200
        before = models(ask)["stories:kept"]
        for path in ("spoilt", "other"):
            answer = ask(
                "POST", "/v1/load_lora_adapter", who="admin", json=body | {"lora_path": path, "load_inplace": True}
            )
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, "lora_path"), answer.text
        assert models(ask)["stories:kept"] == before
    finally:
        shutil.rmtree(spoilt)
        shutil.rmtree(other)
        ask("POST", "/v1/unload_lora_adapter", who="admin", json={"lora_name": "stories:kept"})


def test_an_admin_loads_nothing_for_somebody_else(
    house: House, secrets_of: dict[str, str], server: SimpleNamespace, tmp_path: Path
) -> None:
    path = tmp_path / "keys.toml"
    secret = add_key(path, "helper", users=("ann",), admin=True)
    door = Door(Keys.read(path), within=server.within)

    async def load(name: str) -> httpx.Response:
        heads = {"Authorization": f"Bearer {secret}"}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app(house, door)), base_url="http://here") as client:
            body = {"lora_name": f"stories:user/{name}", "lora_path": "global"}
            return await client.post("/v1/load_lora_adapter", json=body, headers=heads)

    before = house.stands["stories"].catalogue.find("user/bob", Who("", frozenset({"bob"})))
    theirs, missing, own = (asyncio.run(load(name)) for name in ("bob", "bub", "ann"))
    assert (theirs.status_code, theirs.json()["error"]["code"]) == (403, "not_owner")
    assert theirs.text.replace("bob", "bub") == missing.text
    assert "load_inplace" in own.json()["error"]["message"]
    assert house.stands["stories"].catalogue.find("user/bob", Who("", frozenset({"bob"}))) == before


def test_what_all_stand_on_stays(ask: Ask) -> None:
    answer = ask("POST", "/v1/unload_lora_adapter", who="admin", json={"lora_name": "stories:backbone"})
    assert answer.status_code == 400


# ---- monitors and readers


def test_a_monitor_reads_what_was_done(ask: Ask) -> None:
    def now() -> dict[tuple[str, ...], float]:
        text = ask("GET", "/metrics", who="").text
        found = [one for family in text_string_to_metric_families(text) for one in family.samples]
        return {(one.name, *sorted(one.labels.values())): one.value for one in found}

    before = now()
    assert ask("POST", "/v1/completions", json={"model": "global", "prompt": "the", "max_tokens": 7}).status_code == 200
    assert ask("POST", "/v1/completions", json={"model": "nobody", "prompt": "the"}).status_code == 404
    after = now()
    rise = {key: after[key] - before.get(key, 0) for key in after}
    assert rise["fedgen_requests_total", "/v1/completions", "200"] == 1
    assert rise["fedgen_requests_total", "/v1/completions", "404"] == 1
    assert rise["fedgen_tokens_total", "written"] == 7
    assert rise["fedgen_first_token_seconds_count",] == 1
    assert after["fedgen_round", "stories"] == 2
    deadline = time.monotonic() + 10  # a row is free a moment after its last word is out
    while now()["fedgen_rows_running", "stories"] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert now()["fedgen_rows_running", "stories"] == now()["fedgen_rows_waiting", "stories"] == 0
    assert {"fedgen_adapter_loads_total", "fedgen_adapter_hits_total", "fedgen_slots_used"} <= {key[0] for key in after}


def test_the_document_is_read_without_going_elsewhere(ask: Ask) -> None:
    page = ask("GET", "/docs", who="").text
    assert "/v1/chat/completions" in page
    assert "prompt_embeds" in page
    assert "src=" not in page
    assert "://" not in page


def test_the_document_says_where_a_key_is_wanted(ask: Ask) -> None:
    paths = ask("GET", "/openapi.json", who="").json()["paths"]
    assert paths["/v1/models"]["get"]["security"] == [{"bearer": []}]
    assert paths["/health"]["get"]["security"] == []
    assert {"401", "404", "429", "503", "504"} <= paths["/v1/completions"]["post"]["responses"].keys()


def test_the_version_is_told(ask: Ask) -> None:
    assert ask("GET", "/version", who="").json() == {"version": fedgen.__version__}


def test_an_answer_that_json_cannot_hold_is_no_answer() -> None:
    assert packed({"text": "é\ud800"}) == '{"text":"é?"}'.encode()
    with pytest.raises(ValueError, match="not JSON compliant"):
        packed({"loss": math.nan})


def test_a_run_that_goes_on_is_read_anew(house: House, tmp_path: Path, ask: Ask) -> None:
    stand = house.stands["stories"]
    journal = stand.run.folder / "journal.jsonl"
    before = journal.read_bytes()
    line = json.loads(before.splitlines()[-1]) | {"round": 3}
    try:
        journal.write_bytes(before + json.dumps(line).encode() + b"\n")
        assert ask("GET", "/v1/runs").json()[0]["rounds"] == 3
    finally:
        journal.write_bytes(before)
    assert ask("GET", "/v1/runs").json()[0]["rounds"] == 2
