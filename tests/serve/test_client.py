"""`fedgen.Client` against a real server: what it writes and draws is what was asked, and no prompt is on the wire."""

import base64
import json
import socket
import threading
from collections.abc import Iterator
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fedgen import Client, Run
from fedgen.backbones import LanguageBackbone
from fedgen.errors import ServeError, UnknownError
from fedgen.records import Document
from fedgen.sample import Sampler, Wish, sampler

PROMPT = "the quick brown harbour"


@pytest.fixture(scope="module")
def voice(text_run: Run) -> Iterator[Sampler]:
    found = sampler(text_run)
    with found.bank:
        yield found


@pytest.fixture(scope="module")
def brush(image_run: Run) -> Iterator[Sampler]:
    found = sampler(image_run)
    with found.bank:
        yield found


@pytest.fixture(scope="module")
def client(server: SimpleNamespace, voice: Sampler, brush: Sampler) -> Client:
    """Ann's device, with its own copies of both backbones."""
    return Client(server.url, server.keys["ann"], text=voice.backbone, image=brush.backbone)


class Tap:
    """A wire between client and server that keeps all that the client sends."""

    def __init__(self, port: int) -> None:
        self.sent = b""
        self._to = port
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._to))
            threading.Thread(target=self._pass, args=[near, far, True], daemon=True).start()
            threading.Thread(target=self._pass, args=[far, near, False], daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, keep: bool) -> None:
        while part := source.recv(1 << 16):
            if keep:
                self.sent += part
            target.sendall(part)
        target.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._server.close()


@pytest.mark.parametrize("model", ["backbone", "global", "user/ann", "cluster-1=0.5,cluster-2=0.5"])
def test_a_sealed_prompt_is_continued_as_generate_does(client: Client, voice: Sampler, model: str) -> None:
    adapter = model.replace("user/", "client/")
    sealed = voice.backbone.seal(PROMPT)
    wanted = "".join(voice.write(sealed, adapter=adapter, tokens=12, temperature=0.7, seed=3))
    found = "".join(client.write(PROMPT, model=f"stories:{model}", tokens=12, temperature=0.7, seed=3))
    assert found == wanted != ""


def test_a_sealed_prompt_is_drawn_as_generate_does(client: Client, brush: Sampler) -> None:
    wanted = list(
        brush.paint([Wish("global", Document("", "", "seven"), seed) for seed in (5, 6)], steps=3, guidance=2.0)
    )
    pictures = client.draw("seven", model="digits:global", n=2, steps=3, guidance=2.0, seed=5)
    for raw, picture in zip(pictures, wanted, strict=True):
        assert (_pixels(raw).int() - picture.int()).abs().max() <= 1


def test_the_wire_carries_neither_text_nor_tokens(server: SimpleNamespace, client: Client, voice: Sampler) -> None:
    tap = Tap(int(server.url.rpartition(":")[2]))
    try:
        near = Client(tap.url, server.keys["ann"], text=voice.backbone)
        assert "".join(near.write(PROMPT, model="stories:user/ann", tokens=4))
    finally:
        tap.close()
    body = json.loads(tap.sent.partition(b"\r\n\r\n")[2])
    assert set(body) == {"model", "max_tokens", "temperature", "seed", "stream", "prompt_embeds"}
    sent = tap.sent + base64.b64decode(body["prompt_embeds"])
    assert b"quick" not in sent
    assert b"harbour" not in sent


def test_it_routes_by_a_vector_of_its_own(client: Client, voice: Sampler, server: SimpleNamespace) -> None:
    stand = server.house.stands["stories"]
    vector = voice.encode(PROMPT)
    found = client._vector("text", PROMPT, voice.backbone)
    assert found == pytest.approx(vector.tolist())
    assert "".join(client.write(PROMPT, tokens=4, model="stories:global", route={"top": 1}))
    assert stand.kind == "text"


def test_a_client_sees_its_own_adapter_and_no_other(client: Client, server: SimpleNamespace) -> None:
    names = {model["id"] for model in client.models()}
    assert "stories:user/ann" in names
    assert "stories:user/bob" not in names
    with pytest.raises(UnknownError, match="user/bob"):
        list(client.write(PROMPT, model="stories:user/bob"))


def test_errors_are_fedgens_own(client: Client, server: SimpleNamespace, voice: Sampler) -> None:
    with pytest.raises(ServeError, match="came a wrong one"):
        Client(server.url, "fedgen-wrong").models()
    with pytest.raises(ServeError, match=r"cannot be reached .* is `fedgen serve` running there"):
        Client("http://127.0.0.1:9").models()
    with pytest.raises(ServeError, match="more than the"):
        list(client.write(PROMPT, model="stories:global", tokens=5000))
    other = Client(server.url, server.keys["ann"], text=_other(voice.backbone))
    with pytest.raises(ServeError, match="seal"):
        list(other.write(PROMPT, model="stories:global"))


def _other(backbone: LanguageBackbone) -> LanguageBackbone:
    return LanguageBackbone("other", "0" * 64, backbone.network, backbone.tokenizer, backbone.length)


def _pixels(raw: bytes) -> Tensor:
    return torch.from_numpy(np.array(Image.open(BytesIO(raw)))).view(1, *Image.open(BytesIO(raw)).size[::-1])
