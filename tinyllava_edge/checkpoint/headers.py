"""Names, shapes and dtypes of a whole checkpoint, without torch and without a weight being read."""

from pathlib import Path

from tinyllava_edge.errors import MissingFileError

from .file_headers import Header, file_headers
from .layouts import ADAPTER, FOLDERS, LORA, NANOVLM, PARTS, PICKLE_FILE, check_is_there
from .nanovlm import names_in_file
from .opened import Checkpoint
from .tensor_names import canonical_name_in_folder


def read_headers(checkpoint: Checkpoint) -> dict[str, Header]:
    """The tensors that a checkpoint's files hold, by canonical name, a LoRA's own matrices not among them.

    Raises:
        MissingFileError: a file is missing, or a pickle that was not allowed.
        CheckpointError: a file is damaged.
    """
    if checkpoint.layout == ADAPTER:
        assert checkpoint.base is not None
        return read_headers(checkpoint.base)
    found: dict[str, Header] = {}
    if checkpoint.layout in (FOLDERS, LORA):
        for part in PARTS:
            path = checkpoint.path / part / PICKLE_FILE
            for key, header in _file_headers(checkpoint, path).items():
                found[canonical_name_in_folder(key, part, checkpoint.layout, path)] = header
        return found
    for piece in checkpoint.pieces:
        for path in piece.files:
            if checkpoint.layout == NANOVLM:
                found |= _nanovlm_headers(checkpoint, path)
                continue
            for key, header in _file_headers(checkpoint, path).items():
                if (name := piece.name(key, path)) is not None:
                    found[name] = header
    return found


def _nanovlm_headers(checkpoint: Checkpoint, path: Path) -> dict[str, Header]:
    headers = _file_headers(checkpoint, path)
    found: dict[str, Header] = {}
    for key, names in names_in_file(headers, checkpoint.config.language.tie_word_embeddings, path).items():
        rows, *rest = headers[key].shape
        found |= dict.fromkeys(names, Header((rows // len(names), *rest), headers[key].dtype))
    return found


def _file_headers(checkpoint: Checkpoint, path: Path) -> dict[str, Header]:
    check_is_there(path)
    if path.suffix == ".bin" and not checkpoint.allow_pickle:
        raise MissingFileError(f"{path}: a pickle of {path.stat().st_size:,} bytes: --allow-pickle reads it.")
    return file_headers(path)
