"""A fleet's folder on the machine of its SuperLink: who is let in, what is asked of Flower, and what it answers."""

import http.client
import json
import os
import socket
import ssl
import subprocess
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fedgen.errors import PlanError, ServeError, StoreError
from fedgen.places.flower.certificates import check_public_key
from fedgen.places.flower.launch import environment, script
from fedgen.plan import toml_of
from fedgen.store import read_bytes, write_whole

FLEET, ADMITTED, CONNECTION = "fleet.toml", "admitted", "fleet"
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}
NO_REASON = ("Using SuperLink", "📄", " Listing", "Loading")  # lines of progress that Flower puts before its reason
TIMEOUT = 10.0  # seconds, for a server that takes the call and says nothing
EXPIRED, OTHER_HOST, OTHER_ADDRESS = 10, 62, 64  # of OpenSSL's reasons to refuse a certificate


@dataclass(frozen=True)
class Node:
    """A node that was let in, as the SuperLink sees it: online, offline, registered (never seen) or unregistered."""

    id: str
    name: str
    status: str
    seconds: float  # online for so long

    @property
    def online(self) -> bool:
        """Whether it can be asked now."""
        return self.status == "online"


@dataclass(frozen=True)
class Fleet:
    """The folder of a fleet; `fleet.toml` in it says where its SuperLink listens, and whether in plain text."""

    folder: Path

    @cached_property
    def home(self) -> Path:
        """The folder as an absolute path, which marks its processes."""
        return Path(os.path.realpath(self.folder))

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """What `fleet.toml` says."""
        path = self.folder / FLEET
        if not path.exists():
            raise StoreError(f"fleet '{self.folder}': has no {FLEET}; make a fleet with `fedgen fleet up` or `server`")
        try:
            found = tomllib.loads(read_bytes(path).decode())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise PlanError(f"{path}: is not TOML ({error})") from error
        wanted = {"address": str, "insecure": bool}
        for key, value in found.items():
            if key not in wanted:
                raise PlanError(f"{path}: '{key}' is not one of {', '.join(wanted)}")
            if type(value) is not wanted[key]:
                raise PlanError(f"{path}: {key}: wanted {wanted[key].__name__}, came {value!r}")
        if missing := [key for key in wanted if key not in found]:
            raise PlanError(f"{path}: '{missing[0]}' is missing; add it")
        split(found["address"])
        return found

    @property
    def insecure(self) -> bool:
        """Whether it speaks in plain text, and so lets anyone in."""
        return bool(self.settings["insecure"])

    @property
    def address(self) -> str:
        """Where the SuperLink listens."""
        return str(self.settings["address"])

    @property
    def near(self) -> str:
        """Where this machine reaches the SuperLink."""
        host, port = split(self.address)
        return joined(EVERYWHERE.get(host, host), port)

    @property
    def ca(self) -> Path | None:
        """What the SuperLink's certificate is checked against."""
        return None if self.insecure else self.home / "ca.crt"

    @property
    def nodes_folder(self) -> Path:
        """Where the nodes of a loopback fleet are."""
        return self.home / "nodes"


def make(folder: Path, address: str, *, insecure: bool) -> Fleet:
    """A fleet's folder with its settings, and a connection of Flower's own command to it."""
    fleet = Fleet(folder)
    split(address)
    others = [] if (fleet.home / FLEET).exists() else sorted(path.name for path in fleet.home.glob("[!.]*"))
    if others:
        raise PlanError(f"fleet '{folder}': holds other files (first '{others[0]}'); name a new folder for the fleet")
    text = f"address = {toml_of(address)}\ninsecure = {toml_of(insecure)}\n"
    fleet.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_whole(fleet.home / FLEET, text.encode())
    trusted = "insecure = true" if fleet.ca is None else f"root-certificates = {toml_of(str(fleet.ca))}"
    config = f"""\
[superlink]
default = "{CONNECTION}"

[superlink.{CONNECTION}]
address = {toml_of(fleet.near)}
{trusted}
"""
    write_whole(fleet.home / "flwr" / "config.toml", config.encode())
    return fleet


# ---- addresses


def split(address: str) -> tuple[str, int]:
    """Host and port of an address such as 10.0.0.5:8000, my.host:8000 or [::1]:8000."""
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise PlanError(f"address: wanted HOST:PORT such as 10.0.0.5:8000, came '{address}'")
    return host, int(port)


def joined(host: str, port: int) -> str:
    """Host and port as an address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def refuse_taken(host: str, port: int) -> int:
    """The port, or with 0 a free one; refuses one that another process listens on, and a host that is not here."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as asked:
        asked.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            asked.bind((host, port))
        except OSError as error:
            remedy = "stop what listens there, or choose another with --port"
            raise ServeError(f"{joined(host, port)}: cannot be listened on ({error.strerror}); {remedy}") from error
        return int(asked.getsockname()[1])


def reach(address: str, ca: Path | None) -> None:
    """Refuse an address where no SuperLink answers, over TLS if there is an authority to check it by."""
    host, port = split(address)
    call: http.client.HTTPConnection = http.client.HTTPConnection(host, port, timeout=TIMEOUT)
    if ca is not None:
        call = http.client.HTTPSConnection(host, port, timeout=TIMEOUT, context=_trusting(ca))
    try:
        call.request("GET", "/health")
        if call.getresponse().status == http.client.OK:
            return
    except ssl.SSLCertVerificationError as error:
        raise ServeError(f"{address}: {_distrust(error, ca, host)}") from error
    except ssl.SSLError as error:
        raise ServeError(f"{address}: does not speak TLS; was it started with --insecure? ({error.reason})") from error
    except socket.gaierror as error:
        raise ServeError(f"{address}: no such host; is the name right?") from error
    except (OSError, http.client.HTTPException) as error:
        said = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
        remedy = "is the address right, is the fleet up, does a firewall stand between, and does it speak TLS?"
        raise ServeError(f"{address}: no SuperLink answers ({said}); {remedy}") from error
    finally:
        call.close()
    raise ServeError(f"{address}: what answers there is no SuperLink; is the address right?")


def _trusting(ca: Path) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cadata=read_bytes(ca).decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        raise StoreError(f"{ca}: is no certificate; copy the server's ca.crt anew") from error


def _distrust(error: ssl.SSLCertVerificationError, ca: Path | None, host: str) -> str:
    if error.verify_code == EXPIRED:
        return "its certificate has expired; the server's owner deletes server.pem and starts the server again"
    if error.verify_code in (OTHER_HOST, OTHER_ADDRESS):
        remedy = f"its owner deletes server.pem and starts it with --name {host}"
        return f"its certificate does not name '{host}'; use a name that it has, or {remedy}"
    return f"its certificate is not of {ca}; copy the ca.crt of this very server"


# ---- what Flower is asked


def flwr(fleet: Fleet, *words: str) -> dict[str, Any]:
    """What Flower's own command answers for this fleet; its exit code is 0 whatever comes of it."""
    reach(fleet.near, fleet.ca)
    command = [script("flwr"), *words, CONNECTION, "--format", "json"]
    ran = subprocess.run(
        command, env=environment(fleet.home), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    try:
        found: dict[str, Any] = json.loads(ran.stdout)
    except ValueError as error:
        told = (ran.stderr or ran.stdout).strip().splitlines() or ["it said nothing"]
        raise ServeError(f"flwr {words[0]}: wanted an answer as JSON, came: {told[-1]}") from error
    if not found.get("success"):
        told = str(found.get("error-message", "it does not say why")).splitlines()
        why = " ".join(line.strip() for line in told if line.strip() and not line.startswith(NO_REASON))
        raise ServeError(f"flwr {' '.join(words[:2])}: {why}")
    return found


def admit(fleet: Fleet, key: Path) -> str:
    """Let a node in by its public key, and say its id; one that is in already is no error."""
    if fleet.insecure:
        raise PlanError(f"fleet '{fleet.folder}': is insecure, so anyone is in; nodes sign in over TLS only")
    public = check_public_key(key)
    known = next((path.stem for path in _records(fleet) if check_public_key(path) == public), "")
    if known:
        status = {node.id: node.status for node in nodes(fleet)}.get(known, "")
        if status == "unregistered":
            remedy = "Flower takes no key twice: delete node.key and node.key.pub on the device, and join anew"
            raise ServeError(f"{key}: this node was taken out; {remedy}")
        if status:
            return known
    try:
        found = str(flwr(fleet, "supernode", "register", str(key))["node-id"])
    except ServeError as error:
        if "[code: 23]" in str(error):
            raise ServeError(f"{key}: the SuperLink has had this key before; make a new one on the device") from error
        raise
    write_whole(fleet.home / ADMITTED / f"{found}.pub", read_bytes(key))
    return found


def _records(fleet: Fleet) -> list[Path]:
    return sorted((fleet.home / ADMITTED).glob("*.pub"))


def names(fleet: Fleet) -> dict[str, str]:
    """The names that nodes gave themselves in their keys, by id."""
    return {path.stem: " ".join(read_bytes(path).decode("utf-8", "replace").split()[2:]) for path in _records(fleet)}


def nodes(fleet: Fleet) -> list[Node]:
    """Every node that was ever let in."""
    called = names(fleet)
    return [
        Node(found["node-id"], called.get(found["node-id"], ""), found["status"], float(found["online-elapsed"]))
        for found in flwr(fleet, "supernode", "list")["nodes"]
    ]


def submit(fleet: Fleet, app: Path) -> str:
    """Start the Flower app of a folder as a run of this fleet; the run's id at Flower."""
    return str(flwr(fleet, "run", str(app))["run-id"])


def runs(fleet: Fleet) -> dict[str, str]:
    """Every run that the SuperLink knows, and how it stands."""
    return {str(found["run-id"]): str(found["status"]) for found in flwr(fleet, "list")["runs"]}


def standing(fleet: Fleet, run: str) -> str:
    """How a run stands: pending, starting, running, finished:completed, finished:failed or finished:stopped."""
    found = runs(fleet)
    if run not in found:
        raise ServeError(f"run {run}: the SuperLink at {fleet.near} knows of none; is the fleet the one it began on?")
    return found[run]


def stop(fleet: Fleet, run: str) -> None:
    """End a run at Flower, if it has not ended."""
    if not standing(fleet, run).startswith("finished"):
        flwr(fleet, "stop", run)
