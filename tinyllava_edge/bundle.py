"""The bundle: a directory that holds an exported model, with a manifest of every file. docs/bundle.md.

`manifest.json` is written last; a directory without a valid one is garbage. Opening checks names, sizes and
hashes before any native parser sees a byte. Nothing executable is ever in a bundle.
"""

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from reprlib import repr as shown
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tinyllava_edge.embedded import is_shipped
from tinyllava_edge.errors import BundleError
from tinyllava_edge.image import Preprocessing
from tinyllava_edge.output import fsync, output_directory, write_json
from tinyllava_edge.prompt import Template, template_fault
from tinyllava_edge.verified_files import VerifiedFiles

SCHEMA_VERSION = 1
MANIFEST_FILE = "manifest.json"
TOKENIZER_FILE = "tokenizer.json"
PARITY_FOLDER = "parity"  # results added later; not listed in the manifest, never executable
REFERENCE_FOLDER = "reference"
MAX_MANIFEST_BYTES = 8 << 20
# No `..`, no absolute, hidden or drive name, no backslash, no control character.
_PLAIN_PATH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")

# Code is never in a bundle, whatever a manifest says; engines are built on the device (docs/jetson.md).
_CODE_SUFFIXES = (".plan", ".engine", ".trt", ".so", ".dll", ".dylib", ".exe", ".sh", ".py", ".pyc", ".pkl")


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

    @model_validator(mode="after")
    def _usable(self) -> "PromptSpec":
        if fault := template_fault(self.template):
            raise ValueError(fault)
        return self


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
    embedding_scale: float = Field(default=1.0, gt=0, allow_inf_nan=False)


class Source(_Strict):
    """Where the bundle came from."""

    name: str
    checkpoint_sha256: str
    layout: str
    repository: str = ""  # of the hub
    revision: str = ""  # its commit


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

    @model_validator(mode="after")
    def _fits_together(self) -> "Manifest":
        ids = [*self.prompt.stop_ids, *([] if self.prompt.bos_id is None else [self.prompt.bos_id])]
        if not all(0 <= index < self.language.vocab_size for index in ids):
            raise ValueError(f"a special id of {ids} is not in a vocabulary of {self.language.vocab_size}")
        names = [(variant.part, variant.name) for variant in self.variants]
        if len(set(names)) != len(names):
            raise ValueError("a variant is listed twice")
        how = self.vision.preprocessing
        if how.image_size != self.vision.image_size:
            raise ValueError(f"pictures of {how.image_size} px, a graph of {self.vision.image_size} px")
        return self


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
        try:
            return cls._open(root)
        except OSError as error:
            raise BundleError(f"{error.filename or root}: cannot be read ({error.strerror}).") from None

    @classmethod
    def _open(cls, root: Path) -> "Bundle":
        path = root / MANIFEST_FILE
        if not root.is_dir():
            raise BundleError(f"{root}: no such directory. Give the path of a bundle, or 'nano'.")
        if not path.is_file():
            raise BundleError(f"{path}: no such file, so {root} is not a (complete) bundle. Export it again.")
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise BundleError(f"{path}: larger than {MAX_MANIFEST_BYTES} bytes.")
        text = path.read_bytes()
        manifest = _parse_manifest(text, path)
        _check_listed_names(root, manifest)
        _check_tree(root, {entry.path for entry in manifest.files})
        verified = VerifiedFiles.load()
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
        write_json(path, {"manifest_sha256": self.manifest_sha256, **result})
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
            fsync(path)
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
        _check_listed_names(self.root, manifest)
        write_json(self.root / MANIFEST_FILE, manifest.model_dump(mode="json"))
        self.sealed = True
        return manifest


@contextmanager
def create_bundle(target: Path, *, force: bool = False) -> Iterator[BundleWriter]:
    """Write a bundle beside `target` and rename it there when it is sealed.

    Raises:
        OutputExistsError: `target` exists and `force` is false.
    """
    with output_directory(target, force=force) as root:
        writer = BundleWriter(root)
        yield writer
        assert writer.sealed, "a bundle must be sealed before it is published"


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
    if type(version) is not int or version != SCHEMA_VERSION:  # True == 1
        raise BundleError(
            f"{path}: schema version {shown(version)}, this program reads {SCHEMA_VERSION}. "
            "Export the bundle again, or install the tinyllava-edge that wrote it."
        )
    try:
        return Manifest.model_validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BundleError(f"{path}: {where[:200]}: {first['msg']}.") from None


def _check_listed_names(root: Path, manifest: Manifest) -> None:
    """Every listed name stays inside, is listed once, and is not one of the names that are never listed."""
    seen: set[str] = set()
    for entry in manifest.files:
        name = entry.path
        if len(name) > 200 or not _PLAIN_PATH.fullmatch(name):
            raise BundleError(f"{root}: the manifest lists {shown(name)}, which is not a plain path inside.")
        folded = name.casefold()  # two names that differ by case only are one file on some disks
        if folded in seen:
            raise BundleError(f"{root}: the manifest lists {name!r} twice.")
        if folded.endswith(_CODE_SUFFIXES):
            raise BundleError(f"{root}: the manifest lists {name!r}; a bundle never holds code or engines.")
        if folded == MANIFEST_FILE or folded.split("/")[0] == PARITY_FOLDER:
            raise BundleError(f"{root}: the manifest lists {name!r}, which no manifest may list.")
        seen.add(folded)
    listed = {entry.path for entry in manifest.files}
    for variant in manifest.variants:
        for name in variant.files:
            if name not in listed:
                raise BundleError(f"{root}: variant {variant.name} needs {shown(name)}, which is not listed.")


def _check_tree(root: Path, listed: set[str]) -> None:
    """Nothing is there that is not listed, and nothing is a link, a pipe or a device."""
    known = {MANIFEST_FILE, *listed}
    folders = {PARITY_FOLDER, *(str(parent) for name in listed for parent in PurePosixPath(name).parents)}
    for folder, subfolders, files in os.walk(root, onerror=_raise):
        for name in [*subfolders, *files]:
            path = Path(folder, name)
            relative = path.relative_to(root)
            mode = path.lstat().st_mode
            is_result = str(relative.parent) == PARITY_FOLDER and path.suffix == ".json"
            if stat.S_ISLNK(mode):
                raise BundleError(f"{path}: is a link; a bundle holds real files only.")
            if stat.S_ISDIR(mode):
                is_known = relative.as_posix() in folders
            else:
                is_known = stat.S_ISREG(mode) and (relative.as_posix() in known or is_result)
            if not is_known:
                raise BundleError(f"{path}: is no file that the manifest lists. Remove it.")


def _raise(error: OSError) -> None:
    raise error


def _check_file(root: Path, entry: FileEntry, verified: VerifiedFiles) -> None:
    path = root / entry.path
    try:
        status = path.stat()
    except FileNotFoundError:
        raise BundleError(f"{path}: missing. Export or copy the bundle again.") from None
    if status.st_nlink != 1 and not is_shipped(root):  # installers may link the package's own files
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
