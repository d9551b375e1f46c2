"""Certificates and keys: what a fleet trusts is made whole, kept as it is, and refused when it no longer holds."""

import datetime as dt
import os
import socket
import ssl
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="Flower is not installed")
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from fedgen.errors import PlanError, ServeError, StoreError
from fedgen.places.flower import quiet
from fedgen.places.flower.certificates import (
    check_public_key,
    check_server,
    make_authority,
    make_node_key,
    make_server,
)
from fedgen.places.flower.fleet import reach


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An authority and a server's certificate that also names my.host."""
    make_server(tmp_path, ("my.host", "10.0.0.5"))
    return tmp_path


def test_a_server_is_named_signed_and_for_servers_alone(folder: Path) -> None:
    ca, server = (x509.load_pem_x509_certificate((folder / name).read_bytes()) for name in ("ca.crt", "server.pem"))
    server.verify_directly_issued_by(ca)
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost", "my.host"]
    assert list(map(str, names.get_values_for_type(x509.IPAddress))) == ["127.0.0.1", "::1", "10.0.0.5"]
    assert ca.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not server.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    check_server(folder, ("my.host", "127.0.0.1"))


def test_nothing_that_is_there_is_overwritten(folder: Path) -> None:
    make_node_key(folder, "ann")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    make_authority(folder)
    make_server(folder, ("other.host",))
    make_node_key(folder, "bob")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_private_keys_are_for_their_owner_alone(folder: Path) -> None:
    make_node_key(folder, "ann")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.glob("*.key")}
    assert modes == {"ca.key": 0o600, "server.key": 0o600, "node.key": 0o600}


def test_a_node_key_is_what_flower_wants(tmp_path: Path) -> None:
    path = make_node_key(tmp_path, "ann's phone")
    private = load_ssh_private_key((tmp_path / "node.key").read_bytes(), None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    assert isinstance(private.curve, ec.SECP384R1)
    assert load_ssh_public_key(path.read_bytes()) == private.public_key()
    assert path.read_text().endswith(" ann's phone\n")
    assert check_public_key(path) == " ".join(path.read_text().split()[:2])


def test_a_renewed_certificate_is_of_the_same_authority(folder: Path) -> None:
    known, old = (folder / "ca.crt").read_bytes(), (folder / "server.pem").read_bytes()
    (folder / "server.pem").unlink()
    make_server(folder, ("new.host",))
    check_server(folder, ("new.host",))
    assert (folder / "server.pem").read_bytes() != old
    assert (folder / "ca.crt").read_bytes() == known


def test_a_certificate_that_has_expired_is_refused(folder: Path) -> None:
    with pytest.raises(StoreError, match=r"server\.pem: expired on .*; delete it and start the server again"):
        check_server(folder, now=dt.datetime.now(dt.UTC) + dt.timedelta(days=1000))
    with pytest.raises(StoreError, match=r"ca\.crt: expired on .*; every device needs a new one"):
        check_server(folder, now=dt.datetime.now(dt.UTC) + dt.timedelta(days=4000))


def test_a_host_that_it_does_not_name_is_refused(folder: Path) -> None:
    with pytest.raises(StoreError, match=r"names localhost, .*, and not 'other\.host'; delete it"):
        check_server(folder, ("other.host",))


def test_a_certificate_of_another_authority_is_refused(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = make_authority(tmp_path_factory.mktemp("other"))
    (folder / "ca.crt").write_bytes(other.read_bytes())
    with pytest.raises(StoreError, match=r"is not signed by .*ca\.crt"):
        check_server(folder)


@pytest.mark.parametrize(
    ("name", "wish"), [("ca.crt", "is no certificate"), ("server.pem", "is no certificate"), ("ca.key", "no private")]
)
def test_a_damaged_file_is_refused(folder: Path, name: str, wish: str) -> None:
    (folder / name).write_text("nonsense")
    if name == "ca.key":
        (folder / "server.pem").unlink()
    with pytest.raises(StoreError, match=wish):
        check_server(make_server(folder).parent)


def test_what_is_no_public_key_is_refused(tmp_path: Path) -> None:
    make_node_key(tmp_path, "ann")
    with pytest.raises(StoreError, match=r"node\.key: wanted a node's public key"):
        check_public_key(tmp_path / "node.key")
    with pytest.raises(StoreError, match="cannot be read"):
        check_public_key(tmp_path / "nowhere.pub")


# ---- the same, as a device meets it


@contextmanager
def listening(folder: Path) -> Iterator[str]:
    """A server with this folder's certificate that answers one call with 200."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    with socket.create_server(("", 0)) as server:

        def answer() -> None:
            try:
                with context.wrap_socket(server.accept()[0], server_side=True) as caller:
                    caller.recv(4096)
                    caller.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            except OSError:
                pass  # the caller did not like it

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        thread.join(10)


def test_a_device_takes_its_own_server(folder: Path) -> None:
    with listening(folder) as address:
        reach(address, folder / "ca.crt")


def test_a_device_refuses_an_expired_server(tmp_path: Path) -> None:
    make_server(tmp_path, days=0)
    with listening(tmp_path) as address, pytest.raises(ServeError, match="its certificate has expired"):
        reach(address, tmp_path / "ca.crt")


def test_a_device_refuses_another_authority(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = make_authority(tmp_path_factory.mktemp("other"))
    with listening(folder) as address, pytest.raises(ServeError, match=r"its certificate is not of .*ca\.crt; copy"):
        reach(address, other)


@pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.2 is this machine on Linux alone")
def test_a_device_refuses_a_server_of_another_name(folder: Path) -> None:
    with listening(folder) as address, pytest.raises(ServeError, match=r"does not name '127\.0\.0\.2'"):
        reach(address.replace("127.0.0.1", "127.0.0.2"), folder / "ca.crt")


def test_a_device_refuses_a_server_without_tls(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with server.accept()[0] as caller:
                caller.recv(4096)
                caller.sendall(b"HTTP/1.1 400 no TLS here\r\n\r\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        with pytest.raises(ServeError, match="does not speak TLS"):
            reach(f"127.0.0.1:{server.getsockname()[1]}", folder / "ca.crt")
        thread.join(10)


# ---- Flower itself


@pytest.mark.parametrize("version", ["1.40.9", "1.43.0", "2.0", "0.99.1", "nightly"])
def test_another_version_of_flower_is_refused(version: str) -> None:
    with pytest.raises(PlanError, match=r"Flower: wanted >=1\.41,<1\.43, came .*; pip install"):
        quiet.refuse(version)


@pytest.mark.parametrize("version", ["1.41", "1.41.0", "1.42.3", "1.42.0.dev20261101"])
def test_the_versions_this_was_written_for_are_taken(version: str) -> None:
    quiet.refuse(version)


def test_flower_is_kept_quiet_unless_the_user_wants_it_otherwise() -> None:
    environ = {"FLWR_TELEMETRY_ENABLED": "1", "HOME": os.sep}
    quiet.quiet(environ)
    assert environ == quiet.QUIET | {"FLWR_TELEMETRY_ENABLED": "1", "HOME": os.sep}
