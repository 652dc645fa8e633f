"""Engine packs: an engine, signed by its owner, for boards identical to the one that built it.

An engine is native code, so a pack is taken only with the owner's public key, and nothing of it is read
before its signature is right. It holds no names: where the engine goes follows from its key.

    16 bytes   magic and version
     8 + 8     lengths of record and plan, little endian
    32         fingerprint: SHA-256 of the raw public key
    record     JSON of `EngineRecord`
    plan       the engine
    64         ed25519 signature of `_CONTEXT` and the SHA-256 of everything before
"""

import hashlib
import mmap
import os
import struct
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tinyllava_edge.atomic_files import output_file
from tinyllava_edge.errors import OutputExistsError, PackError
from tinyllava_edge.user_files import open_user_file, read_user_file

from .cache import MAX_RECORD_BYTES, StoredEngine
from .record import EngineRecord

_MAGIC = b"TLEDGE ENGINE 1\n"
_HEAD = struct.Struct("<16sQQ32s")
_SIGNATURE_BYTES = 64
_CONTEXT = b"tinyllava-edge engine pack 1\0"
MAX_PACK_BYTES = 16 << 30
MAX_KEY_BYTES = 16 << 10


def write_key_pair(path: Path) -> Path:
    """Make an ed25519 key: `path` for the owner alone (0600), `path`.pub for the boards; returns the second.

    Raises:
        OutputExistsError: one of them is there; a key is never replaced.
    """
    from cryptography.hazmat.primitives import serialization as ser
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    public = path.with_name(path.name + ".pub")
    private_text = key.private_bytes(ser.Encoding.PEM, ser.PrivateFormat.PKCS8, ser.NoEncryption())
    public_text = key.public_key().public_bytes(ser.Encoding.PEM, ser.PublicFormat.SubjectPublicKeyInfo)
    for place in (path, public):
        if os.path.lexists(place):
            raise OutputExistsError(
                f"{place}: exists already, and a key is never replaced. Take another name."
            )
    with output_file(public) as beside, output_file(path, mode=0o600) as work:
        work.write_bytes(private_text)
        beside.write_bytes(public_text)
    return public


def write_pack(path: Path, stored: StoredEngine, key_path: Path, *, force: bool = False) -> str:
    """Sign an engine and write its pack; returns the fingerprint of the key.

    Raises:
        OutputExistsError: the pack is there and `force` is false.
        PackError: the engine has not passed on this board, or the key is no private ed25519 key.
    """
    if stored.record.status != "verified":
        raise PackError(
            f"the engine is {stored.record.status}: only one that passed on this board is packed."
        )
    key = _read_key(key_path, private=True)
    fingerprint = _fingerprint(key.public_key())
    record = stored.record.model_dump_json().encode()
    head = _HEAD.pack(_MAGIC, len(record), stored.record.plan_bytes, fingerprint)
    digest = hashlib.sha256(head + record)
    digest.update(stored.plan)
    with output_file(path, force=force, mark=pack_mark) as work, work.open("wb") as file:
        for part in (head, record, stored.plan, key.sign(_CONTEXT + digest.digest())):
            file.write(part)
    return fingerprint.hex()


def pack_mark(path: Path) -> str:
    """Whether a file is a pack: see `atomic_files.Mark`."""
    with path.open("rb") as file:
        return "" if file.read(len(_MAGIC)) == _MAGIC else "is no engine pack"


def open_pack(path: Path, public_key_path: Path) -> StoredEngine:
    """The engine of a pack whose signature is the key's, in memory that nobody else can change.

    Raises:
        PackError: not a pack, damaged, cut, or signed by another key; nothing of it was used.
    """
    key = _read_key(public_key_path, private=False)
    pack = _read_private(path)
    text, plan = _check_signature(path, pack, key)
    try:
        record = EngineRecord.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise PackError(
            f"{path}: its record is of another version ({error.errors()[0]['msg']}). Pack it with this one."
        ) from None
    if (record.plan_bytes, record.plan_sha256) != (len(plan), hashlib.sha256(plan).hexdigest()):
        raise PackError(f"{path}: its record is of another engine.")
    origin = f"pack of key {_fingerprint(key).hex()[:16]}"
    return StoredEngine(record.model_copy(update={"origin": origin}), plan)


def _read_private(path: Path) -> memoryview:
    """The whole file, copied: what is checked is what is used."""
    try:
        with open_user_file(path, most=MAX_PACK_BYTES, error=PackError) as file:
            size = os.fstat(file.fileno()).st_size
            if not _HEAD.size + _SIGNATURE_BYTES < size <= MAX_PACK_BYTES:
                raise PackError(f"{path}: {size} bytes are no engine pack.")
            memory = memoryview(mmap.mmap(-1, size))
            if file.readinto(memory) != size:
                raise PackError(f"{path}: was cut while it was read. Copy it again.")
    except OSError as error:
        raise PackError(f"{path}: cannot be read ({error.strerror}).") from None
    return memory


def _check_signature(path: Path, pack: memoryview, key: Any) -> tuple[bytes, memoryview]:
    """Record and plan of a pack whose signature is right."""
    from cryptography.exceptions import InvalidSignature

    magic, record_bytes, plan_bytes, fingerprint = _HEAD.unpack_from(pack)
    end = len(pack) - _SIGNATURE_BYTES
    if magic != _MAGIC:
        raise PackError(f"{path}: is no engine pack, or of another version of it.")
    if record_bytes > MAX_RECORD_BYTES or plan_bytes == 0 or _HEAD.size + record_bytes + plan_bytes != end:
        raise PackError(f"{path}: is damaged or cut ({len(pack)} bytes). Copy it again.")
    if fingerprint != _fingerprint(key):
        raise PackError(
            f"{path}: is signed by key {fingerprint.hex()[:16]}, trusted is {_fingerprint(key).hex()[:16]}."
        )
    try:
        key.verify(bytes(pack[end:]), _CONTEXT + hashlib.sha256(pack[:end]).digest())
    except InvalidSignature:
        raise PackError(
            f"{path}: its signature is not right: damaged, or changed after it was signed."
        ) from None
    start = _HEAD.size + record_bytes
    return bytes(pack[_HEAD.size : start]), pack[start:end]


def _read_key(path: Path, *, private: bool) -> Any:
    """An ed25519 key from a PEM file.

    Raises:
        PackError: it cannot be read, or is another kind of key.
    """
    from cryptography.hazmat.primitives import serialization as ser
    from cryptography.hazmat.primitives.asymmetric import ed25519

    kind = ed25519.Ed25519PrivateKey if private else ed25519.Ed25519PublicKey
    wanted = "private" if private else "public"
    try:
        text = read_user_file(path, most=MAX_KEY_BYTES, error=PackError)
        key = ser.load_pem_private_key(text, None) if private else ser.load_pem_public_key(text)
    except PackError:
        raise
    except Exception as error:  # the library raises ValueError, TypeError and its own
        raise PackError(f"{path}: is no {wanted} key in PEM ({type(error).__name__}).") from None
    if not isinstance(key, kind):
        raise PackError(f"{path}: is a {type(key).__name__}, expected a {wanted} ed25519 key. See keygen.")
    return key


def _fingerprint(public_key: Any) -> bytes:
    return hashlib.sha256(public_key.public_bytes_raw()).digest()
