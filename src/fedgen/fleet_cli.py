"""The command `fedgen fleet`: a whole fleet on this machine, or a server and nodes on many."""

import contextlib
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from fedgen.errors import PlanError, ServeError, StoreError
from fedgen.places import device, own
from fedgen.places.fleet import noted_kinds
from fedgen.places.fleet import standing as run_standing
from fedgen.places.flower import launch, watch
from fedgen.places.flower.certificates import check_server, make_authority, make_node_key, make_server
from fedgen.places.flower.fleet import (
    EVERYWHERE,
    FLEET,
    Fleet,
    admit,
    joined,
    make,
    names,
    nodes,
    reach,
    refuse_taken,
    runs,
    split,
)
from fedgen.report.wording import counted
from fedgen.screen import stands
from fedgen.store import read_bytes, write_whole

WIDE = 160  # columns for a pipe or a file, where nothing should be cut
PLAIN = "insecure: all that crosses can be read and changed on the way, and nodes cannot sign in: anyone may be one"
GONE = "unregistered"  # nodes that were taken out, or were anyone in an insecure fleet
COMES_UP = 60.0  # seconds for a SuperLink
COMES_IN = 120.0  # seconds for all nodes; one that was killed a moment ago waits for its old heartbeat to lapse

fleet_app = typer.Typer(no_args_is_help=True, help="A fleet on Flower: all of it here, or a server and nodes.")
out = Console(highlight=False, width=None if sys.stdout.isatty() else WIDE)

Watches = Mapping[Path, "subprocess.Popen[bytes]"]
Folder = Annotated[Path, typer.Option(help="The fleet's folder.")]
Insecure = Annotated[bool, typer.Option("--insecure", help="In plain text, and without sign-in. For trials alone.")]


# ---- all of it on this machine


@fleet_app.command()
def up(
    folder: Folder = Path("fleet"),
    count: Annotated[int | None, typer.Option("--nodes", min=1, help="How many nodes; 3 in a new fleet.")] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Where the SuperLink listens; 0: where it is free.")] = 0,
    *,
    detach: Annotated[bool, typer.Option("--detach", help="Leave it running, and return once all is online.")] = False,
    insecure: Insecure = False,
) -> None:
    """Start a whole fleet on this machine for trials: a SuperLink and nodes, with keys and certificates made for it."""
    began = time.monotonic()
    home = Path(os.path.realpath(folder))
    if watch.watched(home):
        _mend(Fleet(home))
        out.print(f"fleet '{folder}' is up at {Fleet(home).near}; `fedgen fleet status --folder {folder}` shows it")
        return
    fleet = _prepared(home, port, insecure=insecure)
    homes = _node_folders(fleet, count)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    watches: Watches = {}
    try:
        watches = _bring_up(fleet, homes, bound=not detach)
        out.print(_online_table(fleet, homes, time.monotonic() - began))
        at = "" if str(folder) == "fleet" else f" --folder {folder}"
        out.print(f"now{'' if detach else ', in another terminal'}: fedgen fleet run PLAN{at}", soft_wrap=True)
        if detach:
            out.print(f"and at the end: fedgen fleet down{at}", soft_wrap=True)
            return
        out.print("Ctrl-C takes it down")
        _stay(watches)
    except KeyboardInterrupt:
        with contextlib.suppress(OSError, SystemExit):  # whoever listened may be gone; rich would end here
            out.print("taking the fleet down ...")
        _take_down(home)
        if not watches:  # it never was up
            raise typer.Exit(130) from None
    except Exception:
        _take_down(home)
        raise


def _mend(fleet: Fleet) -> None:
    """Start again the nodes that were given up, in a fleet that is up."""
    for home in sorted(path.parent for path in fleet.nodes_folder.glob(f"*/{device.NODE}")):
        if not watch.watched(home):
            launch.start(home, launch.supernode(home, fleet.near, insecure=fleet.insecure), bound=False)
            out.print(f"{home.name}: started again")


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _take_down(home: Path) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C would leave half of it
    launch.take_down(home)


def _prepared(home: Path, port: int, *, insecure: bool) -> Fleet:
    """The fleet of this folder, made if it is not there, with a port that is free."""
    launch.take_down(home)  # what is left of one whose watch was killed
    if (home / FLEET).exists():
        fleet = Fleet(home)
        host, known = split(fleet.address)
        if (port and port != known) or (insecure and not fleet.insecure):
            plain = ", insecure" if fleet.insecure else ""
            raise PlanError(f"fleet '{home}': is one at {fleet.address}{plain}; leave the option away, or edit {FLEET}")
        refuse_taken(host, known)
    else:
        fleet = make(home, joined("127.0.0.1", refuse_taken("127.0.0.1", port)), insecure=insecure)
    _warn_or_certify(fleet, ())
    return fleet


def _warn_or_certify(fleet: Fleet, also: tuple[str, ...]) -> None:
    if fleet.insecure:
        typer.echo(PLAIN, err=True)
        return
    host = split(fleet.address)[0]
    wanted = (*also, *([] if host in EVERYWHERE else [host]))
    make_authority(fleet.home)
    make_server(fleet.home, wanted)
    check_server(fleet.home, wanted)


def _node_folders(fleet: Fleet, count: int | None) -> list[Path]:
    """The nodes' folders, made if there are none; each plays its share of the plan's own clients."""
    found = sorted(path.parent for path in fleet.nodes_folder.glob(f"*/{device.NODE}"))
    if found and count not in (None, len(found)):
        raise PlanError(f"fleet '{fleet.folder}': has {len(found)} nodes, came --nodes {count}; choose another folder")
    wanted = count or 3
    for number in range(1, wanted + 1) if not found else ():
        name = f"node-{number}"
        _make_node(fleet.nodes_folder / name, name, f"{number}/{wanted}")
        found.append(fleet.nodes_folder / name)
    for home in found:
        if fleet.ca:
            make_node_key(home, device.read(home).name)
            write_whole(home / "ca.crt", read_bytes(fleet.ca))
    return found


def _make_node(home: Path, name: str, share: str) -> None:
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_whole(home / device.NODE, device.sample(name, share).encode())


def _bring_up(fleet: Fleet, homes: list[Path], *, bound: bool) -> Watches:
    """Start the SuperLink, let the nodes in, start them, and wait until all are online."""
    host, port = split(fleet.address)
    jobs = launch.superlink(fleet.home, host, port, fleet.near, insecure=fleet.insecure)
    watches = {fleet.home: launch.start(fleet.home, jobs, bound=bound)}
    _await(watches, [fleet.home / "superlink.up"], COMES_UP)
    reach(fleet.near, fleet.ca)
    known = {node.name for node in nodes(fleet) if node.status != GONE} if names(fleet) else set()
    for home in homes:
        if not fleet.insecure and device.read(home).name not in known:
            admit(fleet, home / "node.key.pub")
        watches[home] = launch.start(home, launch.supernode(home, fleet.near, insecure=fleet.insecure), bound=bound)
    _await(watches, [home / "supernode.up" for home in homes], COMES_IN)
    return watches


def _await(watches: Watches, signs: list[Path], seconds: float) -> None:
    """Wait until all these files are there."""
    until = time.monotonic() + seconds
    while missing := [sign for sign in signs if not sign.exists()]:
        if gone := [home for home, process in watches.items() if process.poll() is not None]:
            raise ServeError(launch.said(gone[0]))
        if time.monotonic() > until:
            said = launch.said(missing[0].parent)
            raise ServeError(f"{missing[0].parent}: is not up after {seconds:.0f} s; the last it said: {said}")
        time.sleep(0.1)


def _online_table(fleet: Fleet, homes: list[Path], seconds: float) -> Table:
    sort = "in plain text, no sign-in" if fleet.insecure else "TLS and sign-in"
    table = Table(box=SIMPLE_HEAD, pad_edge=False, title=f"fleet at {fleet.near}, {sort}; up in {seconds:.0f} s")
    for head in ("node", "share", "id", "folder"):
        table.add_column(head, no_wrap=True)
    for home in homes:
        held = device.read(home)
        own = "its own data" if held.data else held.consent.share or "all"
        table.add_row(held.name, own, (home / "supernode.up").read_text().strip(), str(home))
    return table


def _stay(watches: Watches) -> None:
    """Pass on what the watches say, until one gives up."""
    heard = {home: (home / watch.SAID).stat().st_size for home in watches}
    while True:
        for home in watches:
            with (home / watch.SAID).open("rb") as said:
                said.seek(heard[home])
                new = said.read()
            heard[home] += len(new)
            for line in new.decode("utf-8", "replace").splitlines():
                out.print(f"{home.name}: {line}", markup=False, soft_wrap=True)
        if gone := [home for home, process in watches.items() if process.poll() is not None]:
            raise ServeError(launch.said(gone[0]))
        time.sleep(0.5)


@fleet_app.command()
def down(folder: Folder = Path("fleet")) -> None:
    """Take down all that runs for a folder, a fleet's or a node's, whatever was killed before."""
    home = Path(os.path.realpath(folder))
    if not home.is_dir():
        raise StoreError(f"fleet '{folder}': is no folder; is the path right?")
    ended = launch.take_down(home)
    out.print(f"{folder}: taken down" if ended else f"{folder}: nothing was running")


# ---- a server and nodes on machines of their own


@fleet_app.command()
def server(
    folder: Folder = Path("fleet"),
    host: Annotated[str, typer.Option(help="The address of this machine to listen on; 0.0.0.0 is all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="The one port of a fleet.")] = 8000,
    name: Annotated[
        list[str], typer.Option("--name", help="A name or address that nodes call it by; may be repeated.")
    ] = [],  # noqa: B006  typer reads the default, nobody changes it
    *,
    insecure: Insecure = False,
) -> None:
    """Run a fleet's SuperLink in the foreground, with a certificate that is made at first."""
    home = Path(os.path.realpath(folder))
    launch.refuse_watched(home, "fleet")
    watch.sweep(str(home))
    refuse_taken(host, port)
    fleet = make(home, joined(host, port), insecure=insecure)
    _warn_or_certify(fleet, tuple(name))
    if fleet.ca:
        out.print(f"nodes need {fleet.ca}; let one in by `fedgen fleet admit KEY.pub --folder {folder}`")
    launch.become(home, launch.superlink(home, host, port, fleet.near, insecure=insecure))


@fleet_app.command("admit")
def let_in(
    key: Annotated[Path, typer.Argument(metavar="KEY.pub", help="The node.key.pub that `join` made on the device.")],
    folder: Folder = Path("fleet"),
) -> None:
    """Let a node in by its public key; again is fine."""
    fleet = Fleet(Path(os.path.realpath(folder)))
    found = admit(fleet, key)
    out.print(f"{names(fleet).get(found) or key}: is in, as node {found}", markup=False, soft_wrap=True)


@fleet_app.command()
def join(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The node's folder on this device.")],
    server: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where the fleet's SuperLink is.")],
    ca: Annotated[Path | None, typer.Option(help="The ca.crt of the server's folder; kept from then on.")] = None,
    *,
    name: Annotated[str, typer.Option(help="At first: the device's name, for ever; its host name without it.")] = "",
    insecure: Insecure = False,
) -> None:
    """Run this device's node in the foreground; the first time, make its key and node.toml and say what to do."""
    home = Path(os.path.realpath(folder))
    split(server)
    launch.refuse_watched(home, "node")
    if ca is not None and not insecure:
        _refuse_distrusted(server, ca)
    if _is_new(home, ca, name or socket.gethostname(), insecure=insecure):
        _say_next(folder, server, insecure=insecure)
        return
    mine = device.read(home)
    if mine.data is not None:
        out.print(f"{mine.name}: {counted(len(mine.data.read()), 'document')}", markup=False)
    if insecure:
        typer.echo(PLAIN, err=True)
    reach(server, None if insecure else home / "ca.crt")
    launch.become(home, launch.supernode(home, server, insecure=insecure))


def _refuse_distrusted(server: str, ca: Path) -> None:
    """Refuse an authority that is not the server's, before it is kept; a server that is down may come up later."""
    try:
        reach(server, ca)
    except ServeError as error:
        if isinstance(error.__cause__, ssl.SSLCertVerificationError):
            raise


def _is_new(home: Path, ca: Path | None, name: str, *, insecure: bool) -> bool:
    """Make what the node's folder lacks; whether its owner has something to do now."""
    fresh = not (home / device.NODE).exists()
    if not insecure:
        _keep_authority(home, ca)
    if fresh:
        _make_node(home, name, "")
    if insecure:
        return fresh
    unsent = not (home / "node.key.pub").exists()
    make_node_key(home, device.read(home).name)
    return fresh or unsent


def _keep_authority(home: Path, ca: Path | None) -> None:
    kept = home / "ca.crt"
    if ca is None and not kept.exists():
        raise PlanError(f"node '{home}': needs the server's ca.crt to know it by; name a copy of it by --ca")
    if ca is None:
        return
    raw = read_bytes(ca)
    if kept.exists() and read_bytes(kept) != raw:
        raise PlanError(f"node '{home}': has another ca.crt than {ca}; if the server's has changed, delete the old one")
    write_whole(kept, raw)


def _say_next(folder: Path, server: str, *, insecure: bool) -> None:
    key = folder / "node.key.pub"
    sends = [] if insecure else [f"send {key} to the server's owner, who runs: fedgen fleet admit {key.name}"]
    plain = " --insecure" if insecure else ""
    steps = (
        f"edit {folder / device.NODE}: the device's name, its data, its limits and what it consents to",
        *sends,
        f"then run: fedgen fleet join {folder} --server {server}{plain}",
    )
    for number, step in enumerate(steps, 1):
        out.print(f"{number}. {step}", markup=False, soft_wrap=True)


@fleet_app.command()
def export(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The node's folder on this device.")],
    to: Annotated[Path, typer.Option(help="The new bundle's folder.")],
    run: Annotated[str, typer.Option(help="The run; the last one without it.")] = "",
    client: Annotated[str, typer.Option(help="Whose, if the node holds several clients.")] = "",
) -> None:
    """Take this device's own adapter out as a bundle, which PEFT and other servers read unchanged."""
    card = own.take(Path(os.path.realpath(folder)), to, run, client)
    out.print(f"{to}: client '{card.client}', run {card.run}, round {card.round}, rank {card.rank}", soft_wrap=True)


# ---- how it stands


@fleet_app.command()
def status(
    folder: Folder = Path("fleet"),
    run: Annotated[Path | None, typer.Option(help="Also how far the run in this folder has come.")] = None,
) -> None:
    """Show a fleet's nodes and runs."""
    fleet = Fleet(Path(os.path.realpath(folder)))
    table = Table(box=SIMPLE_HEAD, pad_edge=False, title=f"fleet at {fleet.near}")
    kinds = noted_kinds(fleet.home)
    for head in ("node", "status", "for", "device", "id"):
        table.add_column(head, no_wrap=True)
    for node in (node for node in nodes(fleet) if node.status != GONE):
        since = f"{node.seconds:.0f} s" if node.online else ""
        table.add_row(node.name, node.status, since, kinds.get(node.id, ""), node.id)
    out.print(table)
    for number, said in runs(fleet).items():
        if not said.startswith("finished"):
            out.print(f"Flower's run {number}: {said}")
    if run is not None:
        now = run_standing(run)
        out.print(f"{run}: {now if isinstance(now, str) else stands(now)}", markup=False, soft_wrap=True)
