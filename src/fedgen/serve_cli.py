"""The commands `fedgen serve` and `fedgen key`: runs behind a server, and the keys of those who may ask it."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fedgen.errors import ServeError
from fedgen.report.wording import counted, size
from fedgen.serve.api import LOOPBACK, Door, Server, listening
from fedgen.serve.house import House, Limits, open_house
from fedgen.serve.keys import ALL, Keys, KeysFile, Who, add_key, new_key
from fedgen.store import write_whole

out = Console(highlight=False, soft_wrap=True)
HOMES = ("127.0.0.1", "::1", "localhost")
ANYONE = Limits()

KeysOption = Annotated[Path | None, typer.Option(help="Who may ask: the file that `fedgen key` writes.")]


class Prompts(StrEnum):
    """Which prompts a server takes."""

    accept = "accept"
    refuse = "refuse"


def serve(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Runs' folders, of text, of images or both.")],
    host: Annotated[str, typer.Option(help="Where to listen; beyond this machine only with --keys.")] = HOMES[0],
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    keys: KeysOption = None,
    hand: Annotated[
        list[str], typer.Option(metavar="CLIENT", help="Whose personal adapter was handed over; may be repeated.")
    ] = [],  # noqa: B006  typer reads the default, nobody changes it
    *,
    adapters: Annotated[Path | None, typer.Option(help="The folder of bundles that an admin may load.")] = None,
    prompts: Annotated[
        Prompts, typer.Option("--plain-prompts", help="refuse: take prompts that a device has encoded alone.")
    ] = Prompts.accept,
    texts: Annotated[int, typer.Option(min=1, help="Texts at work at once.")] = ANYONE.texts,
    pictures: Annotated[int, typer.Option(min=1, help="Pictures at work at once.")] = ANYONE.pictures,
    queue: Annotated[int, typer.Option(min=4, help="Rows that may wait, for each run.")] = ANYONE.places,
    slots: Annotated[int, typer.Option(min=4, help="Adapters in memory at once, of each run.")] = ANYONE.slots,
    rank: Annotated[int, typer.Option(min=0, help="The widest adapter that can be loaded; 0: as the run's.")] = 0,
    length: Annotated[int, typer.Option(min=0, help="Tokens of prompt and answer; 0: all the model reads.")] = 0,
    margin: Annotated[
        float, typer.Option(min=0.0, help="A round that is worse than the last by more than this share is held back.")
    ] = ANYONE.margin,
    patience: Annotated[float, typer.Option(min=0.0, help="Seconds for rows at work to finish at the end.")] = 30.0,
    name: Annotated[
        list[str], typer.Option(metavar="HOST", help="Another name that the server is called by; may be repeated.")
    ] = [],  # noqa: B006
    origin: Annotated[
        list[str], typer.Option(metavar="URL", help="A site whose pages may ask (CORS); may be repeated.")
    ] = [],  # noqa: B006
) -> None:
    """Serve runs to many users at once: their backbones and all their adapters, with a page and OpenAI's API."""
    home = host in HOMES
    if keys is None and not home:
        raise ServeError(f"--host {host}: others can reach it, and it wants --keys; write a file with `fedgen key`")
    if adapters is not None and not adapters.is_dir():
        raise ServeError(f"--adapters {adapters}: wanted a folder, came none; make it, or leave it out")
    known, secret = (KeysFile(keys), "") if keys else _own_key()
    hosts = (*LOOPBACK, host, *name) if home or name else ()
    door = Door(known, open=keys is None, hosts=hosts, origins=tuple(origin), within=adapters)
    limits = Limits(texts, pictures, queue, slots, rank, length, margin=margin)
    with listening(host, port) as at:  # before anything is loaded
        house = open_house(runs, handed=hand, plain=prompts is Prompts.accept, limits=limits, tell=_say)
        server = Server(house, door, at, patience=patience, tell=_say)
        server.run(lambda: _greet(house, server.url + (f"/#key={secret}" if secret else "")))


def key(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The keys' file; made if it is not there.")],
    name: Annotated[str, typer.Option(help="What the key is called.")],
    user: Annotated[
        list[str], typer.Option(metavar="CLIENT", help="Whose personal adapter it opens; may be repeated.")
    ] = [],  # noqa: B006
    admin: Annotated[bool, typer.Option("--admin", help="It may load, pin, roll back and take out adapters.")] = False,
    *,
    to: Annotated[Path | None, typer.Option(help="A new file for it, for your eyes alone, in place of here.")] = None,
) -> None:
    """Add a key and print it, this once; the file holds its hash. A server that runs knows it at once."""
    if to is not None and to.exists():
        raise ServeError(f"--to {to}: is there already, and would be lost; name another file")
    secret = add_key(file, name, users=tuple(user), admin=admin)
    if to is None:
        typer.echo(secret)
    else:
        write_whole(to, secret.encode() + b"\n", 0o600)


def _own_key() -> tuple[Keys, str]:
    """A key for this one sitting, which opens everything."""
    secret, content = new_key()
    return Keys({content: Who("owner", frozenset({ALL}), admin=True)}), secret


def _say(said: str) -> None:
    out.print(said, markup=False)


def _greet(house: House, url: str) -> None:
    for stand in house.stands.values():
        names = stand.catalogue.visible(Who("owner", frozenset({ALL})))
        held = size(stand.nbytes)
        _say(f"{stand.name}: {stand.kind}, {counted(len(names) - 1, 'adapter')}, {held} for rows, slots and caches")
    _say(f"serving at {url}  (Ctrl-C ends)")
