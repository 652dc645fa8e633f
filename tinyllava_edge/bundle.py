"""The bundle: a directory that holds an exported model, with a manifest of every file. docs/bundle.md.

`manifest.json` is written last; a directory without a valid one is garbage. Opening checks names, sizes and
hashes before any native parser sees a byte. Nothing executable is ever in a bundle.
"""

import hashlib
import json
import os
import shlex
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path, PurePosixPath
from reprlib import repr as shown
from typing import BinaryIO, Literal

from tinyllava_edge.atomic_files import foreign_file, fsync, output_directory, write_json
from tinyllava_edge.checkpoint.names import is_shipped
from tinyllava_edge.console import note
from tinyllava_edge.errors import BundleError
from tinyllava_edge.gguf_check import GGUF_RULES, check_gguf
from tinyllava_edge.ir_check import IR_RULES, check_ir
from tinyllava_edge.manifest import (
    MANIFEST_FILE,
    MAX_MANIFEST_BYTES,
    PARITY_FOLDER,
    FileEntry,
    LanguageSpec,
    Manifest,
    Part,
    PromptSpec,
    Source,
    Variant,
    VisionSpec,
    check_listed_names,
    digest_of,
    parse_manifest,
)
from tinyllava_edge.onnx_check import RULES, check_onnx
from tinyllava_edge.precisions import split_budget
from tinyllava_edge.process import detail
from tinyllava_edge.tokenizer_file import MAX_TOKENIZER_BYTES, check_tokenizer
from tinyllava_edge.tokenizer_file import RULES as TOKENIZER_RULES
from tinyllava_edge.verified_files import VerifiedFiles, open_real, sha256_of_file, sha256_of_open, state_of

__all__ = [
    "MANIFEST_FILE",
    "MAX_MANIFEST_BYTES",
    "PARITY_FOLDER",
    "REFERENCE_FOLDER",
    "TOKENIZER_FILE",
    "Bundle",
    "BundleWriter",
    "FileEntry",
    "LanguageSpec",
    "Manifest",
    "Part",
    "PromptSpec",
    "Source",
    "Variant",
    "VisionSpec",
    "bundle_mark",
    "create_bundle",
    "sha256_of_file",
]

TOKENIZER_FILE = "tokenizer.json"
REFERENCE_FOLDER = "reference"
_State = tuple[int, int, int]


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its files were what the manifest says when it was opened, and are those still.

    Attributes:
        states: of each file when it was hashed (`state_of`).
    """

    root: Path
    manifest: Manifest
    manifest_sha256: str
    states: dict[str, _State] = field(default_factory=dict, repr=False, compare=False)

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
        text, manifest = _read_manifest(root)
        if manifest.digest is None:
            _note_no_digest(root)
        check_listed_names(root, manifest)
        _check_tree(root, {entry.path for entry in manifest.files})
        verified, checks = VerifiedFiles(), _checks(manifest)
        states = {
            entry.path: _check_file(root, entry, verified, checks.get(entry.path, []))
            for entry in manifest.files
        }
        verified.save()
        return cls(root, manifest, hashlib.sha256(text).hexdigest(), states)

    def path(self, relative: str) -> Path:
        """Path of a file that the manifest lists.

        Raises:
            BundleError: the manifest does not list it, or it was changed since the bundle was opened.
        """
        entry = next((entry for entry in self.manifest.files if entry.path == relative), None)
        if entry is None:
            raise BundleError(f"{self.root}: the manifest lists no file {shown(relative)}.")
        path = self.root / relative
        if relative in self.states:
            self.states[relative] = _check_state(path, self.states[relative], entry)
        return path

    def check_unchanged(self) -> None:
        """After a library read files by their names: they are still those that were hashed.

        Raises:
            BundleError: names one that is not.
        """
        for relative in self.states:
            self.path(relative)

    @contextmanager
    def open_file(self, relative: str) -> Iterator[BinaryIO]:
        """Open a file that the manifest lists, to read it; `Raises` as `path`, for a change meanwhile too."""
        path = self.path(relative)
        try:
            with open_real(path) as file:
                before = self.states.get(relative) or state_of(os.fstat(file.fileno()))
                yield file
                after = state_of(os.fstat(file.fileno()))
        except OSError as error:
            raise BundleError(f"{path}: cannot be read ({error.strerror or error}).") from None
        if after != before:
            raise _changed(path)

    def read_text(self, relative: str, limit: int = MAX_TOKENIZER_BYTES) -> str:
        """Content of a text file that the manifest lists.

        Raises:
            BundleError: as `path`; or it is larger than `limit` bytes, or not UTF-8.
        """
        with self.open_file(relative) as file:
            content = file.read(limit + 1)
        if len(content) > limit:
            raise BundleError(
                f"{self.root / relative}: larger than {limit:,} bytes. Export the bundle again."
            )
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise BundleError(
                f"{self.root / relative}: byte {error.start} is not UTF-8. Export the bundle again."
            ) from None

    def variant(
        self, part: Literal["vision", "language"], name: str | None = None, target: str = ""
    ) -> Variant:
        """The named variant of a part, or the most precise verified one, of a target where one is given.

        Raises:
            BundleError: there is none; the message lists those there are.
        """
        variants = [v for v in self.manifest.variants if v.part == part]
        if name is not None:
            exact = [v for v in variants if v.name == name]
            variants = exact or [v for v in variants if v.precision == name]
        else:
            variants = [v for v in variants if v.status == "verified" and target in ("", v.target)]
        if not variants:
            names = ", ".join(f"{v.name} ({v.status})" for v in self.manifest.variants if v.part == part)
            wanted = f"{part} variant {name!r}" if name else f"verified {part} variant {target}".rstrip()
            raise BundleError(f"{self.root}: no {wanted}. There are: {names or 'none'}.")
        return variants[0]

    def at_tokens(self, tokens: int | None = None, vision: str | None = None) -> "Bundle":
        """The bundle with the vision variants of one budget of visual tokens, as what is opened sees it.

        Args:
            tokens: the budget; None is that of `vision`, or the largest.
            vision: name of a vision variant, or None.

        Raises:
            BundleError: it has no such budget; the message lists those there are.
        """
        budgets = self.manifest.budgets
        if tokens is None:
            tokens = (split_budget(vision)[1] if vision else None) or budgets[0]
        if tokens not in budgets:
            raise BundleError(
                f"{self.root}: has no budget of {tokens} visual tokens. There are: "
                f"{', '.join(map(str, budgets))}."
            )
        return replace(self, manifest=self.manifest.at_tokens(tokens))

    def variant_bytes(self, variant: Variant) -> int:
        """Size on disk of a variant's files."""
        sizes = {entry.path: entry.size for entry in self.manifest.files}
        return sum(sizes[path] for path in variant.files)


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
        check_listed_names(self.root, manifest)
        manifest = manifest.model_copy(update={"digest": digest_of(manifest.model_dump(mode="json"))})
        write_json(self.root / MANIFEST_FILE, manifest.model_dump(mode="json"))
        self.sealed = True
        return manifest


@contextmanager
def create_bundle(target: Path, *, force: bool = False, needed: int = 0) -> Iterator[BundleWriter]:
    """Write a bundle beside `target` and rename it there when it is sealed.

    Args:
        target: where it will be.
        force: replace a bundle that is there.
        needed: bytes that it will have at least.

    Raises:
        OutputExistsError: `target` exists, and `force` is false or it is no bundle.
        DiskFullError: there is no room.
    """
    with output_directory(target, force=force, mark=bundle_mark, needed=needed) as root:
        writer = BundleWriter(root)
        yield writer
        assert writer.sealed, "a bundle must be sealed before it is published"


@cache
def _note_no_digest(root: Path) -> None:
    note(f"{root}: written before manifests had a digest, so damage to {MANIFEST_FILE} may go unseen")


def bundle_mark(root: Path) -> str:
    """Whether a directory is a bundle and nothing but it, whole or not: see `atomic_files.Mark`."""
    known = {MANIFEST_FILE, *(entry.path for entry in _read_manifest(root)[1].files)}
    return foreign_file(root, lambda name: name in known or _is_result(root / name))


def _read_manifest(root: Path) -> tuple[bytes, Manifest]:
    path = root / MANIFEST_FILE
    if not root.is_dir():
        raise BundleError(f"{root}: no such directory. Give the path of a bundle, or 'nano'.")
    if not path.is_file() and (root / "config.json").is_file():
        raise BundleError(
            f"{root}: is a checkpoint, and a bundle is wanted. Make one: tinyllava-edge export "
            f"{shlex.quote(str(root))} -o BUNDLE"
        )
    if not path.is_file():
        raise BundleError(f"{path}: no such file, so {root} is not a (complete) bundle. Export it again.")
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise BundleError(f"{path}: larger than {MAX_MANIFEST_BYTES} bytes.")
    text = path.read_bytes()
    return text, parse_manifest(text, path)


def _is_result(path: Path) -> bool:
    """Whether a file in `parity/` is one of ours: it names a manifest, or was left by a killed process."""
    if path.parent.name != PARITY_FOLDER or path.suffix != ".json" or not path.is_file():
        return False
    return path.name.startswith(".") or "manifest_sha256" in json.loads(path.read_bytes())


def _check_tree(root: Path, listed: set[str]) -> None:
    """Nothing is there that is not listed, and nothing is a link, a pipe or a device."""
    known = {MANIFEST_FILE, *listed}
    folders = {PARITY_FOLDER, *(str(parent) for name in listed for parent in PurePosixPath(name).parents)}
    for folder, subfolders, files in os.walk(root, onerror=_raise):
        for name in [*subfolders, *files]:
            path = Path(folder, name)
            relative = path.relative_to(root)
            is_result = str(relative.parent) == PARITY_FOLDER and path.suffix == ".json"
            try:
                mode = path.lstat().st_mode
            except FileNotFoundError:
                if is_result:  # `verify` writes one at this moment
                    continue
                raise
            if stat.S_ISLNK(mode):
                raise BundleError(f"{path}: is a link; a bundle holds real files only.")
            if stat.S_ISDIR(mode):
                is_known = relative.as_posix() in folders
            else:
                is_known = stat.S_ISREG(mode) and (relative.as_posix() in known or is_result)
            if not is_known:
                raise BundleError(f"{path}: is no file that the manifest lists. Remove it.")


def _checks(manifest: Manifest) -> dict[str, list[tuple[str, Callable[[Path], None]]]]:
    """File that a library reads -> what it is held against and the check, for each variant that it is of."""
    sizes = {entry.path: entry.size for entry in manifest.files}
    rows = manifest.language.vocab_size
    tokenizer = (f"{TOKENIZER_RULES}:{rows}", partial(check_tokenizer, vocab_size=rows))
    found: dict[str, list[tuple[str, Callable[[Path], None]]]] = {TOKENIZER_FILE: [tokenizer]}
    for variant in manifest.variants:
        first, *apart = (PurePosixPath(name) for name in variant.files)
        beside = {path.name: sizes[str(path)] for path in apart if path.parent == first.parent}
        if variant.target == "onnx":
            facts = f"{RULES}{json.dumps(beside, sort_keys=True)}"
            check: Callable[[Path], None] = partial(check_onnx, apart=beside)
        elif variant.target == "openvino":
            facts = f"{IR_RULES}{variant.name}{json.dumps(beside)}{manifest.language.model_dump_json()}"
            check = partial(check_ir, weights=beside, variant=variant.name, spec=manifest.language)
        else:
            facts = f"{GGUF_RULES}{variant.name}{manifest.language.model_dump_json()}"
            check = partial(check_gguf, variant=variant.name, spec=manifest.language)
        found.setdefault(str(first), []).append((f"{variant.target}{facts}", check))
    return found


def _raise(error: OSError) -> None:
    raise error


def _check_file(
    root: Path, entry: FileEntry, verified: VerifiedFiles, checks: list[tuple[str, Callable[[Path], None]]]
) -> _State:
    """What is remembered of a file that a library reads is that it was held against these facts, too."""
    path = root / entry.path
    read_as = "".join([entry.sha256, *(facts for facts, _ in checks)]).encode()
    remembered = hashlib.sha256(read_as).hexdigest() if checks else entry.sha256
    try:
        file = open_real(path)
    except FileNotFoundError:
        raise BundleError(f"{path}: missing. Export or copy the bundle again.") from None
    with file:
        status = os.fstat(file.fileno())
        if status.st_nlink != 1 and not is_shipped(root):  # installers may link the package's own files
            raise BundleError(f"{path}: has {status.st_nlink} hard links; a bundle holds real files only.")
        if status.st_size != entry.size:
            raise BundleError(
                f"{path}: {status.st_size} bytes, the manifest says {entry.size}. Copy it again."
            )
        if not verified.knows(status, remembered):
            detail(f"{path}: checking {entry.size:,} bytes")
            found = sha256_of_open(file)
            if found != entry.sha256:
                raise BundleError(
                    f"{path}: sha256 {found[:12]}..., the manifest says {entry.sha256[:12]}...: the file was "
                    "changed."
                )
            for _, check in checks:  # no library sees what names files, runs things, or is another model
                check(path)
            verified.add(status, remembered)
    return _check_state(path, state_of(status), entry)  # the name still leads to what was read


def _check_state(path: Path, state: _State, entry: FileEntry) -> _State:
    """The state of a file now; where only its ctime is another (a mode, a link to it), it is hashed again."""
    try:
        found = state_of(path.lstat())
        is_same = found == state or (found[:2] == state[:2] and sha256_of_file(path) == entry.sha256)
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror}).") from None
    if not is_same:
        raise _changed(path)
    return found


def _changed(path: Path) -> BundleError:
    return BundleError(f"{path}: was changed while the bundle was open. Open it again.")
