"""The bundle: a directory that holds an exported model, with a manifest of every file. docs/bundle.md.

`manifest.json` is written last; a directory without a valid one is garbage. Opening checks names, sizes and
hashes before any native parser sees a byte. Nothing executable is ever in a bundle.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tinyllava_edge.errors import BundleError, OutputExistsError
from tinyllava_edge.image import Preprocessing
from tinyllava_edge.prompt import Template

SCHEMA_VERSION = 1
MANIFEST_FILE = "manifest.json"
TOKENIZER_FILE = "tokenizer.json"
PARITY_FOLDER = "parity"  # results added later; not listed in the manifest, never executable
REFERENCE_FOLDER = "reference"
MAX_MANIFEST_BYTES = 8 << 20


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileEntry(_Strict):
    """One file of the bundle."""

    path: str
    size: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Part(_Strict):
    """One part of the model as it was in the checkpoint."""

    architecture: str
    parameters: int = Field(ge=0)
    dtype: str


class Variant(_Strict):
    """One precision of one part.

    `files` are relative paths, the one to open first; the others are its external data.
    """

    part: Literal["vision", "language"]
    name: str  # "fp32", "fp16"; "f32", "f16", "q8_0", "q4_k_m"
    target: Literal["onnx", "gguf"]
    files: tuple[str, ...] = Field(min_length=1)
    status: Literal["verified", "built, not run"]


class PromptSpec(_Strict):
    """How a conversation becomes token ids, and what ends an answer."""

    template: Template
    template_reason: str
    bos_id: int | None
    stop_ids: tuple[int, ...] = Field(min_length=1)


class VisionSpec(_Strict):
    """What goes into the vision graph, and what comes out of it."""

    image_size: int = Field(gt=0)
    num_tokens: int = Field(gt=0)
    hidden_size: int = Field(gt=0)  # of the embeddings, which is the language model's
    feature_layer: int
    drop_first: bool
    preprocessing: Preprocessing
    tower_output: str  # name of the graph's inner value between tower and connector


class LanguageSpec(_Strict):
    """Facts of the language model that a runtime needs before it opens the file."""

    architecture: str
    hidden_size: int = Field(gt=0)
    vocab_size: int = Field(gt=0)
    num_hidden_layers: int = Field(gt=0)
    num_attention_heads: int = Field(gt=0)
    num_key_value_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    context_length: int = Field(gt=0)
    embedding_scale: float = 1.0


class Source(_Strict):
    """Where the bundle came from."""

    name: str
    checkpoint_sha256: str
    layout: str


class Manifest(_Strict):
    """`manifest.json`."""

    schema_version: Literal[1] = 1
    parts: dict[Literal["vision_tower", "connector", "language_model"], Part]
    prompt: PromptSpec
    vision: VisionSpec
    language: LanguageSpec
    variants: tuple[Variant, ...] = Field(min_length=1)
    files: tuple[FileEntry, ...]
    source: Source
    versions: dict[str, str]


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its files were what the manifest says when it was opened."""

    root: Path
    manifest: Manifest
    manifest_sha256: str

    @classmethod
    def open(cls, root: Path) -> "Bundle":
        """Check a bundle's manifest and every file's name, size and hash, and open it.

        Raises:
            BundleError: something is missing, changed, linked, unlisted or of an unknown version; the message
                names the file.
        """
        root = Path(root)
        path = root / MANIFEST_FILE
        if not root.is_dir():
            raise BundleError(f"{root}: no such directory. Give the path of a bundle, or 'nano'.")
        if not path.is_file() or path.is_symlink():
            raise BundleError(f"{path}: no such file, so {root} is not a (complete) bundle. Export it again.")
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise BundleError(f"{path}: larger than {MAX_MANIFEST_BYTES} bytes.")
        text = path.read_bytes()
        manifest = _parse_manifest(text, path)
        _check_names(root, manifest)
        verified = _VerifiedFiles.load()
        for entry in manifest.files:
            _check_file(root, entry, verified)
        verified.save()
        return cls(root, manifest, hashlib.sha256(text).hexdigest())

    def path(self, relative: str) -> Path:
        """Path of a file that the manifest lists.

        Raises:
            BundleError: the manifest does not list it.
        """
        if not any(entry.path == relative for entry in self.manifest.files):
            raise BundleError(f"{self.root}: the manifest lists no file {relative!r}.")
        return self.root / relative

    def variant(self, part: Literal["vision", "language"], name: str | None = None) -> Variant:
        """The named variant of a part, or the most precise verified one.

        Raises:
            BundleError: there is none; the message lists those there are.
        """
        variants = [v for v in self.manifest.variants if v.part == part]
        if name is not None:
            variants = [v for v in variants if v.name == name]
        else:
            variants = [v for v in variants if v.status == "verified"]
        if not variants:
            names = ", ".join(f"{v.name} ({v.status})" for v in self.manifest.variants if v.part == part)
            wanted = f"{part} variant {name!r}" if name else f"verified {part} variant"
            raise BundleError(f"{self.root}: no {wanted}. There are: {names or 'none'}.")
        return variants[0]

    def variant_bytes(self, variant: Variant) -> int:
        """Size on disk of a variant's files."""
        sizes = {entry.path: entry.size for entry in self.manifest.files}
        return sum(sizes[path] for path in variant.files)

    def write_parity(self, name: str, result: dict[str, object]) -> Path:
        """Write a result of `verify` to `parity/<name>.json`, bound to this manifest's hash."""
        folder = self.root / PARITY_FOLDER
        folder.mkdir(exist_ok=True)
        path = folder / f"{name}.json"
        _write_atomically(path, {"manifest_sha256": self.manifest_sha256, **result})
        return path


class BundleWriter:
    """A bundle being written: files go below `root`, then `seal` writes the manifest."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.sealed = False

    def seal(
        self,
        *,
        parts: dict[Literal["vision_tower", "connector", "language_model"], Part],
        prompt: PromptSpec,
        vision: VisionSpec,
        language: LanguageSpec,
        variants: tuple[Variant, ...],
        source: Source,
        versions: dict[str, str],
    ) -> Manifest:
        """Hash every file below `root` and write the manifest."""
        entries = []
        for path in sorted(p for p in self.root.rglob("*") if p.is_file()):
            relative = path.relative_to(self.root).as_posix()
            if relative == MANIFEST_FILE or relative.split("/")[0] == PARITY_FOLDER:
                continue
            _fsync(path)
            entries.append(FileEntry(path=relative, size=path.stat().st_size, sha256=sha256_of_file(path)))
        manifest = Manifest(
            parts=parts,
            prompt=prompt,
            vision=vision,
            language=language,
            variants=variants,
            files=tuple(entries),
            source=source,
            versions=versions,
        )
        _write_atomically(self.root / MANIFEST_FILE, manifest.model_dump(mode="json"))
        self.sealed = True
        return manifest


@contextmanager
def create_bundle(target: Path, *, force: bool = False) -> Iterator[BundleWriter]:
    """Write a bundle beside `target` and rename it there when it is sealed.

    Raises:
        OutputExistsError: `target` exists and `force` is false.
    """
    target = Path(target)
    check_output(target, force=force)
    with output_directory(target, force=force) as root:
        writer = BundleWriter(root)
        yield writer
        assert writer.sealed, "a bundle must be sealed before it is published"


def check_output(target: Path, *, force: bool) -> None:
    """Refuse an existing output before any work is done.

    Raises:
        OutputExistsError: `target` exists and `force` is false.
    """
    if (target.exists() or target.is_symlink()) and not force:
        raise OutputExistsError(f"{target}: exists already. Give --force to replace it.")


@contextmanager
def output_directory(target: Path, *, force: bool = False) -> Iterator[Path]:
    """A directory beside `target` that takes its place on success, and is removed on failure."""
    check_output(target, force=force)
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.tmp-", dir=target.parent))
    try:
        yield work
        work.chmod(0o755)
        _replace(work, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _replace(work: Path, target: Path) -> None:
    """Rename `work` to `target`; an existing target is moved aside first and put back on failure."""
    if not target.exists():
        work.rename(target)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.old-", dir=target.parent))
    target.rename(aside / target.name)
    try:
        work.rename(target)
    except OSError:
        (aside / target.name).rename(target)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def sha256_of_file(path: Path) -> str:
    """Hash a file without holding it in memory."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _parse_manifest(text: bytes, path: Path) -> Manifest:
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: not valid JSON ({error}).") from None
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"{path}: schema version {version!r}, this program reads {SCHEMA_VERSION}. "
            "Export the bundle again, or install the tinyllava-edge that wrote it."
        )
    try:
        return Manifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BundleError(f"{path}: {where}: {first['msg']}.") from None


def _check_names(root: Path, manifest: Manifest) -> None:
    """Every listed name stays inside, nothing is a link, nothing is there that is not listed."""
    listed = [entry.path for entry in manifest.files]
    for name in listed:
        pure = PurePosixPath(name)
        inside = not pure.is_absolute() and ".." not in pure.parts and pure.as_posix() == name
        if not inside or "\\" in name or "\0" in name or name == MANIFEST_FILE:
            raise BundleError(f"{root}: the manifest lists {name!r}, which is not a path inside.")
    if len(set(listed)) != len(listed):
        raise BundleError(f"{root}: the manifest lists a file twice.")
    for variant in manifest.variants:
        for name in variant.files:
            if name not in listed:
                raise BundleError(f"{root}: variant {variant.name} needs {name!r}, not listed.")
    for folder, folders, files in os.walk(root):
        for name in [*folders, *files]:
            _check_entry(Path(folder, name), root, listed)


def _check_entry(path: Path, root: Path, listed: list[str]) -> None:
    relative = path.relative_to(root).as_posix()
    if path.is_symlink():
        raise BundleError(f"{path}: is a link; a bundle holds real files only.")
    is_result = relative.startswith(f"{PARITY_FOLDER}/") and path.suffix == ".json"
    if not path.is_dir() and relative != MANIFEST_FILE and relative not in listed and not is_result:
        raise BundleError(f"{path}: the manifest does not list this file. Remove it.")


def _check_file(root: Path, entry: FileEntry, verified: "_VerifiedFiles") -> None:
    path = root / entry.path
    try:
        status = path.stat()
    except OSError:
        raise BundleError(f"{path}: missing. Export or copy the bundle again.") from None
    if status.st_nlink != 1:
        raise BundleError(f"{path}: has {status.st_nlink} hard links; a bundle holds real files only.")
    if status.st_size != entry.size:
        raise BundleError(f"{path}: {status.st_size} bytes, the manifest says {entry.size}. Copy it again.")
    if verified.knows(status, entry.sha256):
        return
    found = sha256_of_file(path)
    if found != entry.sha256:
        raise BundleError(
            f"{path}: sha256 {found[:12]}..., the manifest says {entry.sha256[:12]}...: the file was changed."
        )
    verified.add(status, entry.sha256)


class _VerifiedFiles:
    """Files already hashed, by device, inode, size and mtime: a start does not hash gigabytes again."""

    def __init__(self, path: Path, known: dict[str, str]) -> None:
        self._path = path
        self._known = known
        self._added = False

    @classmethod
    def load(cls) -> "_VerifiedFiles":
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        path = base / "tinyllava-edge" / "verified.json"
        try:
            if path.stat().st_uid != os.getuid() or path.stat().st_mode & 0o077:
                return cls(path, {})  # somebody else can write it: do not believe it
            known = json.loads(path.read_text())
            return cls(path, known if isinstance(known, dict) else {})
        except (OSError, ValueError):
            return cls(path, {})

    @staticmethod
    def _key(status: os.stat_result) -> str:
        return f"{status.st_dev}:{status.st_ino}:{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}"

    def knows(self, status: os.stat_result, sha256: str) -> bool:
        return self._known.get(self._key(status)) == sha256

    def add(self, status: os.stat_result, sha256: str) -> None:
        self._known[self._key(status)] = sha256
        self._added = True

    def save(self) -> None:
        if not self._added:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            recent = dict(list(self._known.items())[-10_000:])
            _write_atomically(self._path, recent)  # mkstemp makes it private
        except OSError:
            return  # a read-only home only costs the next start some hashing


def _write_atomically(path: Path, value: object) -> None:
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    os.replace(name, path)


def _fsync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
