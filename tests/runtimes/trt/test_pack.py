"""Engine packs: what is not the owner's, to the bit, is not taken."""

import struct
from pathlib import Path

import pytest

from tests.runtimes.trt.test_cache import make_key
from tests.runtimes.trt.test_cache import store as store_engine
from tinyllava_edge.errors import OutputExistsError, PackError
from tinyllava_edge.runtimes.trt.cache import EngineCache, StoredEngine

pytest.importorskip("cryptography", reason="needs the package cryptography (extra packs)")

from tinyllava_edge.runtimes.trt.pack import open_pack, write_key_pair, write_pack


@pytest.fixture
def key(tmp_path: Path) -> Path:
    write_key_pair(tmp_path / "owner")
    return tmp_path / "owner"


@pytest.fixture
def stored(tmp_path: Path) -> StoredEngine:
    cache = EngineCache(tmp_path / "engines")
    record = store_engine(cache, make_key(), b"the engine's plan")
    cache.update(record.model_copy(update={"status": "verified", "parity": {"snr_db": 61.5}}))
    return cache.find(make_key())


@pytest.fixture
def pack(tmp_path: Path, stored: StoredEngine, key: Path) -> Path:
    write_pack(tmp_path / "engine.pack", stored, key)
    return tmp_path / "engine.pack"


def test_a_pack_gives_the_engine_back(pack: Path, stored: StoredEngine, key: Path) -> None:
    with open_pack(pack, key.with_suffix(".pub")) as found:
        assert bytes(found.plan) == b"the engine's plan"
        assert found.record.key == stored.record.key
        assert found.record.parity == {"snr_db": 61.5}
        assert found.record.origin.startswith("pack of key ")


def test_keys_are_the_owners_and_are_never_replaced(key: Path) -> None:
    assert key.stat().st_mode & 0o777 == 0o600
    before = key.read_bytes()
    with pytest.raises(OutputExistsError, match="never replaced"):
        write_key_pair(key)
    assert key.read_bytes() == before
    key.unlink()
    with pytest.raises(OutputExistsError, match=r"owner.pub"):
        write_key_pair(key)
    assert not key.exists()


def test_a_pack_is_not_replaced_unless_told(pack: Path, stored: StoredEngine, key: Path) -> None:
    with pytest.raises(OutputExistsError):
        write_pack(pack, stored, key)
    write_pack(pack, stored, key, force=True)
    assert sorted(path.name for path in pack.parent.iterdir()) == [
        "engine.pack",
        "engines",
        "owner",
        "owner.pub",
    ]


def test_an_engine_that_did_not_pass_is_not_packed(stored: StoredEngine, key: Path, tmp_path: Path) -> None:
    for status in ("built, not run", "refused"):
        failed = StoredEngine(stored.record.model_copy(update={"status": status}), stored.plan)
        with pytest.raises(PackError, match=f"the engine is {status}"):
            write_pack(tmp_path / "engine.pack", failed, key)
    assert not (tmp_path / "engine.pack").exists()


def test_a_bit_that_is_flipped_anywhere_is_found(pack: Path, key: Path) -> None:
    good = pack.read_bytes()
    for position in range(len(good)):
        changed = bytearray(good)
        changed[position] ^= 1 << position % 8
        pack.write_bytes(changed)
        with pytest.raises(PackError):
            open_pack(pack, key.with_suffix(".pub"))


def test_a_pack_that_is_cut_or_longer_is_refused(pack: Path, key: Path) -> None:
    good = pack.read_bytes()
    for size in (*range(0, len(good), 7), len(good) - 1):
        pack.write_bytes(good[:size])
        with pytest.raises(PackError):
            open_pack(pack, key.with_suffix(".pub"))
    pack.write_bytes(good + b"\0")
    with pytest.raises(PackError, match="damaged or cut"):
        open_pack(pack, key.with_suffix(".pub"))


def test_another_owners_pack_is_refused(pack: Path, tmp_path: Path) -> None:
    other = write_key_pair(tmp_path / "other")
    with pytest.raises(PackError, match=r"signed by key [0-9a-f]{16}, trusted is [0-9a-f]{16}"):
        open_pack(pack, other)


def test_a_forged_fingerprint_does_not_help(
    pack: Path, tmp_path: Path, stored: StoredEngine, key: Path
) -> None:
    """A pack of another key that claims the trusted one's fingerprint."""
    write_key_pair(tmp_path / "other")
    write_pack(tmp_path / "forged", stored, tmp_path / "other")
    honest, forged = pack.read_bytes(), bytearray((tmp_path / "forged").read_bytes())
    forged[32:64] = honest[32:64]
    pack.write_bytes(forged)
    with pytest.raises(PackError, match="signature is not right"):
        open_pack(pack, key.with_suffix(".pub"))


def test_two_packs_cannot_be_spliced(pack: Path, tmp_path: Path, key: Path) -> None:
    """The record of one and the plan of another, both signed by the owner."""
    cache = EngineCache(tmp_path / "engines")
    record = store_engine(cache, make_key(sm=86), b"ANOTHER one: PLAN")
    cache.update(record.model_copy(update={"status": "verified", "parity": {"snr_db": 61.5}}))
    with cache.find(make_key(sm=86)) as other:
        write_pack(tmp_path / "other.pack", other, key)
    one, two = bytearray(pack.read_bytes()), (tmp_path / "other.pack").read_bytes()
    assert len(one) == len(two)
    one[-81:-64] = two[-81:-64]
    pack.write_bytes(one)
    with pytest.raises(PackError, match="signature is not right"):
        open_pack(pack, key.with_suffix(".pub"))


@pytest.mark.parametrize("lengths", [(1 << 63, 5), (5, 1 << 63), (0, 0), ((1 << 64) - 1, 2)])
def test_lengths_that_lie_are_refused(pack: Path, key: Path, lengths: tuple[int, int]) -> None:
    changed = bytearray(pack.read_bytes())
    changed[16:32] = struct.pack("<QQ", *lengths)
    pack.write_bytes(changed)
    with pytest.raises(PackError, match="damaged or cut"):
        open_pack(pack, key.with_suffix(".pub"))


@pytest.mark.parametrize(
    "content", [b"", b"no key", b"-----BEGIN PUBLIC KEY-----\nAA\n-----END PUBLIC KEY-----\n"]
)
def test_what_is_no_key_is_refused(pack: Path, key: Path, content: bytes, stored: StoredEngine) -> None:
    bad = key.with_suffix(".bad")
    bad.write_bytes(content)
    with pytest.raises(PackError, match="is no public key in PEM"):
        open_pack(pack, bad)
    with pytest.raises(PackError, match="is no private key in PEM"):
        write_pack(pack.with_suffix(".new"), stored, bad)
    with pytest.raises(PackError, match="cannot be read"):
        open_pack(pack, key.with_suffix(".missing"))


def test_a_key_of_another_kind_is_refused(pack: Path, key: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    public = ec.generate_private_key(ec.SECP256R1()).public_key()
    other = key.with_suffix(".ec")
    other.write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(PackError, match="expected a public ed25519 key"):
        open_pack(pack, other)


def test_what_is_no_file_is_refused(tmp_path: Path, key: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(PackError, match="cannot be read"):
            open_pack(path, key.with_suffix(".pub"))
