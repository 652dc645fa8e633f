"""The private cache of TensorRT engines built on this machine, and of what was chosen for each bundle.

An engine is native code, so it is loaded only from here: a directory of the user's own (0700), files of the
user's own (0600), with the SHA-256 that was recorded when it was stored. An engine fits one machine and one
library, so it is found by a key of all that it depends on (docs/sources/tensorrt.md#what-an-engine-fits).
Whatever does not fit, or is damaged, counts as not there: it is built again.

    engines/<key>.json           the record: key, hash of the plan, parity on this device
    engines/<key>-<hash>.plan    the engine; the record is renamed into place last and names it
    engines/<key>-<hash>.kernels what TensorRT-RTX compiled for it (`kernel_file.py`)
    engines/<key>.lock           held while one process builds it
    engines/timings.cache        kernel timings of earlier builds, TensorRT's own file
    engines/choice-<hash>.json   what `build` chose for a bundle, by the hash of its manifest
"""

import hashlib
import mmap
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from tinyllava_edge.atomic_files import fsync, full_disk_named, write_json
from tinyllava_edge.cache import cache_folder, is_private
from tinyllava_edge.errors import BackendError, NoEngineError
from tinyllava_edge.file_lock import open_lock, take_lock
from tinyllava_edge.verified_files import VerifiedFiles
from tinyllava_edge.work_places import work_place

from .kernel_file import KernelFile
from .private_files import open_private
from .record import Choice, EngineKey, EngineRecord

MAX_RECORD_BYTES = 1 << 20
_RECORD_NAME = re.compile(r"[0-9a-f]{64}\.json")
Record = TypeVar("Record", bound=BaseModel)


@dataclass
class StoredEngine:
    """An engine in memory, checked; its memory goes with the block that it is opened for.

    Attributes:
        kernels: where what TensorRT-RTX compiles for it is kept; None for an engine that is in no file.
        note: what its user should know, as that it was built in another power mode; or "".
    """

    record: EngineRecord
    plan: memoryview
    kernels: KernelFile | None = None
    note: str = ""

    def __enter__(self) -> "StoredEngine":
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(BufferError):  # an error's traceback may still view it: then it goes with that
            self.plan.release()


class EngineCache:
    """The cache's directory, made private when it is not there.

    Raises:
        BackendError: the directory is somebody else's, or others may write to it or read it.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or engine_folder()
        with full_disk_named(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = self.folder.lstat()
        if not (stat.S_ISDIR(status.st_mode) and is_private(status)):
            raise BackendError(
                f"{self.folder}: must be a directory of your own that nobody else may enter, for engines are "
                f"code. chmod 700 {self.folder}, or remove it."
            )

    @property
    def timings(self) -> Path:
        """Where TensorRT keeps how long kernels took, which the next build then need not measure."""
        return self.folder / "timings.cache"

    def find(self, key: EngineKey) -> StoredEngine:
        """The engine of a key.

        Raises:
            NoEngineError: there is none, or it is damaged; the message says which.
        """
        if not (self.folder / f"{key.digest}.json").exists():
            raise NoEngineError("there is none yet")
        record = self._read(f"{key.digest}.json", EngineRecord)
        if record.key != key:
            raise NoEngineError("its record is of another key")
        return self.open_plan(record, self.plan_path(record))

    def record(self, digest: str) -> EngineRecord:
        """The record of an engine by its key's digest; raises as `find` does."""
        return self._read(f"{digest}.json", EngineRecord)

    @contextmanager
    def work_file(self) -> Iterator[Path]:
        """A name for an engine that is being built, in the cache; what is there at the end is removed."""
        with full_disk_named(self.folder), work_place(self.folder, ".work.") as folder:  # 0700
            yield folder / "engine.plan"

    def store(self, record: EngineRecord, work: Path) -> None:
        """Keep the engine in a work file in the place of an older one; complete whenever it is seen."""
        work.chmod(0o600)
        fsync(work)
        target = self.plan_path(record)
        os.replace(work, target)
        self.update(record)
        for old in self.folder.glob(f"{record.key.digest}-*"):
            if old.stem != target.stem:
                old.unlink(missing_ok=True)

    def update(self, record: EngineRecord) -> None:
        """Write an engine's record anew."""
        write_json(self.folder / f"{record.key.digest}.json", record.model_dump(mode="json"), mode=0o600)
        fsync(self.folder)

    @contextmanager
    def lock(self, key: EngineKey, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Alone with a key among all processes; the lock of one that died is gone with it.

        Args:
            key: what is to be built.
            on_wait: called where another process has it, before waiting.
        """
        with full_disk_named(self.folder):
            handle = open_lock(self.folder / f"{key.digest}.lock")
        try:
            take_lock(handle, on_wait)
            yield
        finally:
            os.close(handle)

    def choose(self, choice: Choice) -> None:
        """Remember what was chosen for a bundle."""
        path = self.folder / f"choice-{choice.manifest_sha256}.json"
        write_json(path, choice.model_dump(mode="json"), mode=0o600)

    def choice(self, manifest_sha256: str) -> Choice | None:
        """What was chosen for a bundle, or None where nothing was, or cannot be read."""
        try:
            found = self._read(f"choice-{manifest_sha256}.json", Choice)
        except NoEngineError:
            return None
        return found if found.manifest_sha256 == manifest_sha256 else None

    def records(self) -> Iterator[tuple[Path, EngineRecord | None]]:
        """Every record's path, with None for one that cannot be used."""
        for path in sorted(p for p in self.folder.glob("*.json") if _RECORD_NAME.fullmatch(p.name)):
            try:
                yield path, self._read(path.name, EngineRecord)
            except NoEngineError:
                yield path, None

    def plan_path(self, record: EngineRecord) -> Path:
        """Where the engine of a record is."""
        return self.folder / f"{record.key.digest}-{record.plan_sha256[:16]}.plan"

    def _read(self, name: str, kind: type[Record]) -> Record:
        """A JSON file of ours, checked.

        Raises:
            NoEngineError: it is not there, not ours, or not what it should be.
        """
        with open_private(self.folder / name) as handle:
            if os.fstat(handle).st_size > MAX_RECORD_BYTES:
                raise NoEngineError(f"{name} is too large")
            text = os.read(handle, MAX_RECORD_BYTES)
        try:
            return kind.model_validate_json(text, strict=True)
        except ValidationError as error:
            raise NoEngineError(f"{name} is damaged ({error.errors()[0]['msg']})") from None

    def open_plan(self, record: EngineRecord, path: Path) -> StoredEngine:
        """Map a plan whose size and hash are those recorded; the mapping is what was hashed.

        Raises:
            NoEngineError: it is not there, not private to the user, or damaged.
        """
        with open_private(path) as handle:
            status = os.fstat(handle)
            if status.st_size != record.plan_bytes:
                raise NoEngineError(f"{path.name} is damaged (its size)")
            plan = memoryview(mmap.mmap(handle, 0, access=mmap.ACCESS_READ))
        verified = VerifiedFiles()
        if not verified.knows(status, record.plan_sha256):
            if hashlib.sha256(plan).hexdigest() != record.plan_sha256:
                raise NoEngineError(f"{path.name} is damaged (its hash)")
            verified.add(status, record.plan_sha256)
            verified.save()
        return StoredEngine(record, plan, KernelFile(path.with_suffix(".kernels"), record.plan_sha256))


def engine_folder() -> Path:
    """Where the engines of this user are."""
    return cache_folder() / "engines"
