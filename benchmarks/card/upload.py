"""A bundle to the hub, by huggingface_hub's own client: one commit, so that nobody sees a part of it."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyllava_edge.bundle import Bundle
from tinyllava_edge.console import note, progress
from tinyllava_edge.errors import BundleError, HubError, OutputExistsError
from tinyllava_edge.manifest import MANIFEST_FILE, MAX_MANIFEST_BYTES, PARITY_FOLDER
from tinyllava_edge.parity_files import EXPORT, found_path, read_parity
from tinyllava_edge.runtimes.registry import RUNTIMES
from tinyllava_edge.verified_files import open_real, sha256_of_open

if TYPE_CHECKING:
    from huggingface_hub import HfApi

Content = Path | bytes
CARD = "README.md"
_OF_THE_HUB = {".gitattributes", CARD}  # what a repository may hold before anybody has written to it
_MOST_NOTICE_BYTES = 4 << 20


def files_to_upload(bundle: Bundle, card: str, notices: Sequence[Path]) -> dict[str, Content]:
    """Path in the repository -> file or bytes: bundle, results bound to it, card, files about rights."""
    files: dict[str, Content] = {CARD: card.encode(), MANIFEST_FILE: bundle.root / MANIFEST_FILE}
    files |= {entry.path: bundle.path(entry.path) for entry in bundle.manifest.files}
    for name in (EXPORT, *RUNTIMES):
        if read_parity(bundle, name) is not None and (path := found_path(bundle, name)) is not None:
            files[f"{PARITY_FOLDER}/{name}.json"] = path
    for path in notices:
        if path.name not in files and path.stat().st_size <= _MOST_NOTICE_BYTES:
            files[path.name] = path
    return files


def size_of_all(contents: Iterable[Content]) -> int:
    """Bytes of files."""
    return sum(len(each) if isinstance(each, bytes) else each.stat().st_size for each in contents)


def upload(bundle: Bundle, name: str, files: Mapping[str, Content], *, private: bool, force: bool) -> str:
    """Hash every file anew, make the repository where there is none, and commit; returns the commit.

    Files that the hub has already, of an earlier try, are not sent again: the client's own doing.

    Raises:
        BundleError: a file is not what the manifest says.
        HubError: no token, no right, no network, or the hub refuses.
        MissingExtraError: huggingface_hub is not installed (by the command).
        OutputExistsError: the repository holds something else; or another bundle, and `force` is false.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    _check_hashes(bundle)
    hub = HfApi()
    with _asking(name):
        if _no_token():
            raise HubError(f"{name}: no token to write with. Run `hf auth login`, or set HF_TOKEN.")
        there, parent = _held(hub, name)
        stale = _stale(hub, bundle, name, there, parent, files, force=force)
        if parent is None:
            hub.create_repo(name, private=private)
            there, parent = _held(hub, name)
        operations: list[Any] = [
            CommitOperationAdd(path_in_repo=path, path_or_fileobj=content) for path, content in files.items()
        ]
        operations += [CommitOperationDelete(path_in_repo=path) for path in stale]
        bundle.check_unchanged()
        message = f"Bundle {bundle.manifest_sha256[:12]}, written by tinyllava-edge push"
        commit = hub.create_commit(name, operations, commit_message=message, parent_commit=parent).oid
        try:
            bundle.check_unchanged()
        except BundleError as error:
            raise BundleError(f"{error} Commit {commit} of {name} has some of it: push again.") from None
        _check_arrived(hub, name, commit, files)
    return str(commit)


def _check_hashes(bundle: Bundle) -> None:
    """What is remembered of an earlier opening does not count here."""
    with progress() as bar:
        task = bar.add_task("hashing", total=len(bundle.manifest.files))
        for entry in bundle.manifest.files:
            with open_real(bundle.path(entry.path)) as file:
                if sha256_of_open(file) != entry.sha256:
                    raise BundleError(
                        f"{bundle.root / entry.path}: its sha256 is not what the manifest says: the file was "
                        "changed. Export or copy the bundle again; nothing was uploaded."
                    )
            bar.advance(task)


def _no_token() -> bool:
    from huggingface_hub import get_token

    return get_token() is None


def _held(hub: "HfApi", name: str) -> tuple[dict[str, int], str | None]:
    """Files of a repository and their sizes, and its commit; None where there is no such repository."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        commit = str(hub.model_info(name).sha)
    except RepositoryNotFoundError:
        return {}, None
    return _sizes(hub, name, commit), commit


def _sizes(hub: "HfApi", name: str, commit: str) -> dict[str, int]:
    from huggingface_hub.hf_api import RepoFile

    tree = hub.list_repo_tree(name, revision=commit, recursive=True)
    return {entry.path: entry.size for entry in tree if isinstance(entry, RepoFile)}


def _stale(
    hub: "HfApi",
    bundle: Bundle,
    name: str,
    there: Mapping[str, int],
    commit: str | None,
    files: Mapping[str, Content],
    *,
    force: bool,
) -> list[str]:
    """What a repository holds of another bundle, which goes; what is no bundle's stays, and is refused."""
    if not set(there) - _OF_THE_HUB:
        return []
    if MANIFEST_FILE not in there or there[MANIFEST_FILE] > MAX_MANIFEST_BYTES:
        raise OutputExistsError(
            f"{name}: exists on the hub, and holds {min(set(there) - _OF_THE_HUB)} and no bundle. Choose "
            "another name, or remove what is there on its page."
        )
    found = Path(hub.hf_hub_download(name, MANIFEST_FILE, revision=commit)).read_bytes()
    if found == (bundle.root / MANIFEST_FILE).read_bytes():
        note(f"{name}: holds this bundle already; what is missing or new is sent")
        return []
    if not force:
        raise OutputExistsError(
            f"{name}: exists on the hub, and holds another bundle. Give --force to replace it, or choose "
            "another name."
        )
    try:
        listed = {str(entry["path"]) for entry in json.loads(found)["files"]}
    except (ValueError, LookupError, TypeError, RecursionError):
        listed = set()
    return sorted(
        path
        for path in there
        if path not in files and (path in listed or path.startswith(f"{PARITY_FOLDER}/"))
    )


def _check_arrived(hub: "HfApi", name: str, commit: str, files: Mapping[str, Content]) -> None:
    found = _sizes(hub, name, commit)
    for path, content in files.items():
        if found.get(path) != size_of_all([content]):
            raise HubError(
                f"{name}@{commit}: {path} has {found.get(path, 'no')} bytes there, {size_of_all([content])} "
                "here. Push again."
            )


@contextmanager
def _asking(name: str) -> Iterator[None]:
    """Whatever the client says is one line."""
    from huggingface_hub import errors as hub_errors

    try:
        yield
    except (HubError, OutputExistsError, BundleError):
        raise
    except Exception as error:  # every version of the client has its own for a network that is not there
        cause = _deepest(error)
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if isinstance(cause, hub_errors.LocalTokenNotFoundError) or status == 401:
            why = "the hub does not know your token. Run `hf auth login`, or set HF_TOKEN"
        elif status == 403:
            why = "your token may not write there. Give one with the right to write, or a name of your own"
        elif status == 409:
            why = "it was made or changed meanwhile. Push again, or choose another name"
        else:
            kind = type(cause).__name__
            reason = " ".join(str(cause).split())[:160] or kind
            why = f"the hub could not be asked ({kind}: {reason}). Where there is a network, push again"
        raise HubError(f"{name}: {why}; what was sent is kept there, and nothing of it is seen.") from None


def _deepest(error: BaseException) -> BaseException:
    """What a library's own error was made of: the client wraps that of a thread."""
    while error.__cause__ is not None and not hasattr(error, "response"):
        error = error.__cause__
    return error
