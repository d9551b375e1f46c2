"""What a fleet trusts: its own authority, the server's certificate, and a key a node. Nothing there is overwritten."""

import datetime as dt
import ipaddress
from pathlib import Path
from typing import TYPE_CHECKING

from fedgen.errors import StoreError
from fedgen.places.flower.quiet import flower
from fedgen.store import read_bytes, write_whole

if TYPE_CHECKING:  # cryptography comes with Flower, and only with it
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

LOOPBACK = ("localhost", "127.0.0.1", "::1")
CA_DAYS, SERVER_DAYS = 3650, 825
SLOW_CLOCK = dt.timedelta(days=1)  # a device whose clock is behind takes a new certificate all the same
RENEW = "delete it and start the server again: a new one is made by the same ca.key, and devices need nothing"


def make_authority(folder: Path, days: int = CA_DAYS) -> Path:
    """The fleet's own authority, ca.crt and ca.key; made if it is not there."""
    flower()
    from cryptography import x509

    path = folder / "ca.crt"
    if not path.exists():
        key = _key(folder / "ca.key")
        name = _name("fedgen fleet")
        usage = _usage(signs_certificates=True)
        builder = _begun(name, name, key, days).add_extension(x509.BasicConstraints(True, 0), critical=True)
        write_whole(path, _pem(builder.add_extension(usage, critical=True), key))
    return path


def make_server(folder: Path, names: tuple[str, ...] = (), days: int = SERVER_DAYS) -> Path:
    """The server's certificate for this machine and for these host names and addresses; made if it is not there."""
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    ca, path = make_authority(folder), folder / "server.pem"
    if path.exists():
        return path
    signer, key, issuer = _key(folder / "ca.key"), _key(folder / "server.key"), _load(ca)
    wanted = dict.fromkeys((*LOOPBACK, *names))
    builder = _begun(_name("fedgen server"), issuer.subject, key, days)
    for part, critical in (
        (x509.SubjectAlternativeName([_alternative(name) for name in wanted]), False),
        (x509.BasicConstraints(False, None), True),
        (_usage(signs_certificates=False), True),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
        (x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), False),
    ):
        builder = builder.add_extension(part, critical=critical)
    write_whole(path, _pem(builder, signer))
    return path


def make_node_key(folder: Path, name: str) -> Path:
    """A node's key, node.key and node.key.pub, made if it is not there; the public one carries the node's name."""
    flower()
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    path = folder / "node.key.pub"
    if not path.exists():
        public = _key(folder / "node.key", ssh=True).public_key()
        write_whole(path, public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + f" {name}\n".encode())
    return path


def check_server(folder: Path, names: tuple[str, ...] = (), now: dt.datetime | None = None) -> None:
    """Refuse a server's certificate that has expired, is not of this authority, or lacks one of these names."""
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature

    now, ca = now or dt.datetime.now(dt.UTC), _load(folder / "ca.crt")
    path = folder / "server.pem"
    found = _load(path)
    for where, certificate in ((folder / "ca.crt", ca), (path, found)):
        if now > certificate.not_valid_after_utc:
            remedy = RENEW if certificate is found else "every device needs a new one; docs/fleet.md says how"
            raise StoreError(f"{where}: expired on {certificate.not_valid_after_utc:%Y-%m-%d}; {remedy}")
    try:
        found.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise StoreError(f"{path}: is not signed by {folder / 'ca.crt'}; {RENEW}") from error
    held = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    known = [str(alternative.value) for alternative in held]
    if missing := [name for name in names if name not in known]:
        raise StoreError(f"{path}: names {', '.join(known)}, and not '{missing[0]}'; {RENEW}")


def check_public_key(path: Path) -> str:
    """A node's public key as its file has it, without the comment; refuses what is none."""
    flower()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_ssh_public_key

    raw = read_bytes(path)
    try:
        if isinstance(load_ssh_public_key(raw), ec.EllipticCurvePublicKey):
            return " ".join(raw.decode().split()[:2])
    except (ValueError, UnsupportedAlgorithm):
        pass
    raise StoreError(f"{path}: wanted a node's public key, node.key.pub as `fedgen fleet join` makes it, came another")


def _key(path: Path, *, ssh: bool = False) -> "ec.EllipticCurvePrivateKey":
    """The private key of this file; made, for its owner's eyes alone, if it is not there."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    if path.exists():
        read = serialization.load_ssh_private_key if ssh else serialization.load_pem_private_key
        try:
            found = read(read_bytes(path), None)
        except ValueError as error:
            raise StoreError(f"{path}: is no private key; put back a copy of it") from error
        if not isinstance(found, ec.EllipticCurvePrivateKey):
            raise StoreError(f"{path}: wanted a key on an elliptic curve; put back a copy of the one made here")
        return found
    key = ec.generate_private_key(ec.SECP384R1())
    form = serialization.PrivateFormat.OpenSSH if ssh else serialization.PrivateFormat.PKCS8
    raw = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    write_whole(path, raw, mode=0o600)
    return key


def _load(path: Path) -> "x509.Certificate":
    flower()
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificate(read_bytes(path))
    except ValueError as error:
        raise StoreError(f"{path}: is no certificate; put back a copy of it, or delete it to have one made") from error


def _name(common: str) -> "x509.Name":
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _alternative(name: str) -> "x509.GeneralName":
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _usage(*, signs_certificates: bool) -> "x509.KeyUsage":
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not signs_certificates, key_cert_sign=signs_certificates, crl_sign=signs_certificates,
        content_commitment=False, key_encipherment=False, data_encipherment=False, key_agreement=False,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _begun(
    subject: "x509.Name", issuer: "x509.Name", key: "ec.EllipticCurvePrivateKey", days: int
) -> "x509.CertificateBuilder":
    from cryptography import x509

    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SLOW_CLOCK)
        .not_valid_after(now + dt.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _pem(builder: "x509.CertificateBuilder", signer: "ec.EllipticCurvePrivateKey") -> bytes:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.serialization import Encoding

    raw: bytes = builder.sign(signer, hashes.SHA384()).public_bytes(Encoding.PEM)
    return raw
