"""Checkpoints and bundles of the Hugging Face hub: `owner/name[@revision]`, pinned to a commit.

Only a command that names one asks the hub, and only for the files listed here: never a `.py` file, and a
pickle only where pickles are allowed. Everything lies in huggingface_hub's own cache, which is found again
without a network.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from glob import escape
from pathlib import Path

from tinyllava_edge.cache import cache_folder
from tinyllava_edge.errors import CheckpointError
from tinyllava_edge.process import detail

from .files import read_json_object
from .llava_line import line_of
from .source_names import hub_name

HUB = "hub"  # of --sources: ask the hub for what config.json names
_NAME = re.compile(r"(?P<repository>[A-Za-z0-9][\w.-]*/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SMALL_FILES = (
    *("config.json", "preprocessor_config.json", "processor_config.json"),
    *("tokenizer_config.json", "special_tokens_map.json"),
    *("tokenizer.model", "tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json"),
)
CHECKPOINT_FILES = (
    *_SMALL_FILES,
    *("tinyllava_edge.json", "*.safetensors", "*.index.json", "adapter_config.json"),
    "vision_tower/config.json",
)
PICKLES = (
    *("pytorch_model.bin", "pytorch_model-*.bin", "adapter_model.bin", "mm_projector.bin"),
    "vision_tower/pytorch_model.bin",
    "connector/pytorch_model.bin",
    "language_model/pytorch_model.bin",
)
# Keys of config.json that name other repositories.
_NAMING_KEYS = (
    *("llm_model_name_or_path", "tokenizer_name_or_path", "vision_model_name_or_path"),
    *("vision_model_name_or_path2", "mm_vision_tower", "mm_image_tower", "lm_tokenizer"),
)
_BERT = "google-bert/bert-base-uncased"


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A directory, and the repository and commit of the hub that its files are of ("" for none)."""

    path: Path
    repository: str = ""
    commit: str = ""

    @property
    def name(self) -> str:
        """What finds this snapshot again."""
        return f"{self.repository}@{self.commit}"


def parse_name(text: str) -> tuple[str, str | None] | None:
    """Repository and revision of `owner/name[@revision]`; None for any other text."""
    match = _NAME.fullmatch(text)
    return (match["repository"], match["revision"]) if match and ".." not in text else None


def cached_snapshot(text: str) -> Path | None:
    """The directory of a snapshot that was downloaded before; no network is asked."""
    parsed = parse_name(text)
    if parsed is None:
        return None
    try:
        from huggingface_hub import snapshot_download

        name, revision = parsed
        # Without a pattern newer clients want every file of the repository to be there.
        found = snapshot_download(
            name, revision=revision, allow_patterns="config.json", local_files_only=True
        )
    except (ImportError, OSError, ValueError):  # no client, no such snapshot, no name that the hub allows
        return None
    return Path(found) if _COMMIT.fullmatch(Path(found).name) else None


def download_checkpoint(text: str, *, allow_pickle: bool = False) -> Snapshot:
    """Download a checkpoint's config, tokenizer and weights.

    Args:
        text: `owner/name[@revision]`.
        allow_pickle: also the `.bin` files of the three sub-directories.

    Raises:
        CheckpointError: the hub cannot be reached, has no such repository or revision, refuses it, or the
            repository holds no weights of a kind that was allowed.
    """
    snapshot = _download(text, (*CHECKPOINT_FILES, *(PICKLES if allow_pickle else ())))
    if not any(any(snapshot.path.glob(pattern)) for pattern in ("*.safetensors", *PICKLES)):
        pickles = "Weights in .bin files are pickles, which are downloaded only with --allow-pickle."
        if allow_pickle:
            pickles = "Nor are there .bin files of a whole model, of its parts or of an adapter."
        raise CheckpointError(f"{snapshot.name}: holds no .safetensors. {pickles}")
    return snapshot


def download_configs(text: str) -> Snapshot:
    """Download configs, processor and tokenizer, and no weights; errors as `download_checkpoint`."""
    return _download(text, _SMALL_FILES)


def named_repositories(checkpoint: Path) -> list[str]:
    """The repositories that a checkpoint's config.json names."""
    raw = read_json_object(checkpoint / "config.json")
    keys = [*_NAMING_KEYS, *(["_name_or_path"] if line_of(raw) else [])]  # elsewhere a training's output
    names = [hub_name(str(raw.get(key) or "").removeprefix("mof:")) for key in keys]
    if raw.get("connector_type") == "qformer":
        names.append(_BERT)
    return [name for name in dict.fromkeys(names) if parse_name(name)]


def download_sources(checkpoint: Path) -> tuple[Path, list[Snapshot], list[str]]:
    """Download configs, processors and tokenizers of the repositories that a checkpoint names; no weights.

    Returns:
        A directory with each at `<name>/`, the snapshots, and why others could not be had.

    Raises:
        CheckpointError: none could be had.
    """
    snapshots, problems = [], []
    for name in named_repositories(checkpoint):
        try:
            snapshots.append(_download(name, _SMALL_FILES))
        except CheckpointError as error:
            problems.append(str(error))
    if problems and not snapshots:
        raise CheckpointError(problems[0])
    return _linked(snapshots), snapshots, problems


def _linked(snapshots: list[Snapshot]) -> Path:
    """A directory of our cache in which every repository has its own name."""
    digest = hashlib.sha256("\n".join(snapshot.name for snapshot in snapshots).encode()).hexdigest()
    folder = cache_folder() / "sources" / digest[:16]
    for snapshot in snapshots:
        link = folder / snapshot.repository
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_dir():
            link.unlink(missing_ok=True)  # of a cache that was emptied
            link.symlink_to(snapshot.path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@dataclass(frozen=True, kw_only=True)
class Repository:
    """What a repository of the hub holds at one commit.

    Attributes:
        name: `owner/name`.
        commit: of all that follows.
        sizes: bytes of each file.
    """

    name: str
    commit: str
    sizes: dict[str, int]

    def to_download(self, *, allow_pickle: bool) -> int:
        """Bytes of a checkpoint that `download_checkpoint` would still fetch."""
        from huggingface_hub import try_to_load_from_cache

        patterns = (*CHECKPOINT_FILES, *(PICKLES if allow_pickle else ()))
        return sum(
            size
            for file, size in self.sizes.items()
            if any(fnmatch(file, pattern) for pattern in patterns)
            if not isinstance(try_to_load_from_cache(self.name, file, revision=self.commit), str)
        )

    def download(self, files: Iterable[str], folder: Path) -> None:
        """Write files into a folder but those that an earlier call left whole; else a CheckpointError."""
        from huggingface_hub import snapshot_download

        detail(f"{self.name}@{self.commit}: to {folder}")
        with _asking(f"{self.name}@{self.commit}", self.name, self.commit):
            snapshot_download(
                self.name,
                revision=self.commit,
                allow_patterns=[escape(file) for file in files],
                local_dir=folder,
            )


def read_repository(text: str) -> Repository:
    """Ask the hub what `owner/name[@revision]` holds; nothing is downloaded.

    Raises:
        CheckpointError: as `download_checkpoint`.
    """
    parsed = parse_name(text)
    assert parsed is not None, text
    name, revision = parsed
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    with _asking(text, name, revision):
        hub = HfApi()
        commit = hub.model_info(name, revision=revision).sha
        tree = hub.list_repo_tree(name, revision=commit, recursive=True)
        sizes = {entry.path: entry.size for entry in tree if isinstance(entry, RepoFile)}
    return Repository(name=name, commit=str(commit), sizes=sizes)


def _download(text: str, patterns: tuple[str, ...]) -> Snapshot:
    parsed = parse_name(text)
    assert parsed is not None, text
    repository, revision = parsed
    from huggingface_hub import snapshot_download

    detail(f"{text}: asking the hub for {', '.join(patterns)}")
    with _asking(text, repository, revision):
        path = Path(snapshot_download(repository, revision=revision, allow_patterns=list(patterns)))
    if not _COMMIT.fullmatch(path.name):
        raise CheckpointError(f"{text}: the hub did not say which commit it is ({path.name}).")
    return Snapshot(path=path, repository=repository, commit=path.name)


@contextmanager
def _asking(text: str, repository: str, revision: str | None) -> Iterator[None]:
    """Whatever the hub's client says is one line."""
    from huggingface_hub import errors as hub_errors

    try:
        yield
    except hub_errors.GatedRepoError:
        raise CheckpointError(
            f"{text}: the hub gives it only to who has accepted its terms. Accept them on its page, then run "
            "`hf auth login`."
        ) from None
    except hub_errors.RepositoryNotFoundError:
        raise CheckpointError(
            f"{text}: no such directory here, and the hub has no such repository, or a private one."
        ) from None
    except hub_errors.RevisionNotFoundError:
        raise CheckpointError(f"{repository}: the hub has no revision {revision!r} of it.") from None
    except Exception as error:  # every version of the client has its own for a network that is not there
        kind = type(error).__name__
        reason = " ".join(str(error).split())[:120] or kind
        raise CheckpointError(
            f"{text}: no such directory here, and the hub could not be asked ({kind}: {reason}). "
            "Where there is no network, copy the checkpoint's directory here and give its path."
        ) from None
