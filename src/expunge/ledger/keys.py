"""The Ed25519 key pair that signs the ledger and certificates, and verification with the public key.

`EXPUNGE_SIGNING_KEY` names a PEM file or holds the PEM itself. Without it the key lies in `records/keys`, is generated
on first use and is readable by its owner only. Whoever holds the private key can sign anything, so verifiers must get
the public key beforehand and through a separate channel.
"""

from __future__ import annotations

import base64
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from expunge.system.errors import KeyFileError
from expunge.system.files import create_durable, others_can_read
from expunge.system.paths import KEYS

ENV = "EXPUNGE_SIGNING_KEY"
PRIVATE, PUBLIC = "signing.pem", "signing.pub.pem"


@dataclass(frozen=True)
class PublicKey:
    """An Ed25519 public key, which verifies signatures."""

    key: Ed25519PublicKey

    @classmethod
    def read(cls, path: Path | str) -> PublicKey:
        """Read a public key from a PEM file. Raises KeyFileError if that fails or if it is not an Ed25519 key."""
        try:
            key = load_pem_public_key(Path(path).read_bytes())
        except OSError as e:
            raise KeyFileError(f"{path}: the public key cannot be read ({e.strerror})") from None
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise KeyFileError(f"{path}: not a public key in PEM, which begins with BEGIN PUBLIC KEY") from None
        if not isinstance(key, Ed25519PublicKey):
            raise KeyFileError(f"{path}: not an Ed25519 key")
        return cls(key)

    @property
    def pem(self) -> bytes:
        """The key as PEM."""
        return self.key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    @property
    def fingerprint(self) -> str:
        """Return `sha256:...` of the 32 raw bytes of the key."""
        return "sha256:" + hashlib.sha256(self.key.public_bytes(Encoding.Raw, PublicFormat.Raw)).hexdigest()

    def signed(self, content: bytes, signature: str) -> bool:
        """Return whether `signature` (base64) was made for `content` with the private key."""
        try:
            self.key.verify(base64.b64decode(signature, validate=True), content)
        except (InvalidSignature, ValueError):
            return False
        return True


@dataclass(frozen=True)
class SigningKey:
    """An Ed25519 private key, which signs."""

    key: Ed25519PrivateKey

    @property
    def public(self) -> PublicKey:
        """The public key that verifies the signatures of this one."""
        return PublicKey(self.key.public_key())

    def sign(self, content: bytes) -> str:
        """Return the signature of `content` in base64. Ed25519 is deterministic (RFC 8032)."""
        return base64.b64encode(self.key.sign(content)).decode()


def signing_key(home: Path | str = ".") -> SigningKey:
    """Return the key of the environment variable, else that of the workspace `home`, generated on first use.

    Raises KeyFileError if the key cannot be read or if other users can read its file.
    """
    given = os.environ.get(ENV, "")
    if given.lstrip().startswith("-----BEGIN"):
        return _parse(given.encode(), ENV)
    path = Path(given) if given else Path(home) / KEYS / PRIVATE
    if not _is_file(path):
        if given:
            # The value may be a key without its BEGIN and END lines, so it is quoted only if it looks like a path.
            named = (
                f"{path}: no such file"
                if path.suffix in (".pem", ".key")
                else "neither a key in PEM nor an existing file"
            )
            raise KeyFileError(f"{ENV}: {named}; unset it to have a key generated in {KEYS}")
        _make(path)
    if others_can_read(path):
        raise KeyFileError(f"{path}: others can read this private key; run `chmod 600 {path}`, or make a new one")
    return _parse(path.read_bytes(), str(path))


def public_key(home: Path | str = ".") -> PublicKey:
    """Return the public key of the signing key in use, else the public key file of the workspace.

    No key is generated for verification. Raises KeyFileError if there is neither.
    """
    path = Path(home) / KEYS / PUBLIC
    if os.environ.get(ENV) or path.with_name(PRIVATE).is_file():
        return signing_key(home).public
    if not path.is_file():
        raise KeyFileError(
            f"{path}: no such file, so there is no key to verify with; get it from whoever signed, or set {ENV} to "
            "their key"
        )
    return PublicKey.read(path)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # the name is too long for the file system
        return False


def _parse(pem: bytes, where: str) -> SigningKey:
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise KeyFileError(f"{where}: not a private key in PEM without a password") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyFileError(f"{where}: not an Ed25519 key")
    return SigningKey(key)


def _make(path: Path) -> None:
    """Generate and write a key pair, unless another process was faster."""
    key = SigningKey(Ed25519PrivateKey.generate())
    if create_durable(path, key.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())):
        path.with_name(PUBLIC).write_bytes(key.public.pem)
