"""What `train` writes beside a checkpoint, by name: looked at before torch is imported."""

from pathlib import Path

from tinyllava_edge.atomic_files import foreign_file
from tinyllava_edge.checkpoint.config import SIDECAR_FILE
from tinyllava_edge.checkpoint.files import PROCESSOR_FILE, read_json_object
from tinyllava_edge.checkpoint.layouts import ADAPTER_CONFIG, ADAPTER_WEIGHTS, FLAT_FILE, TOKENIZER_FILES

LOG_FILE = "training_log.jsonl"
REPORTS = "reports"  # a folder, of TensorBoard's files
CURVE_FILE = "training_curve.png"
ADAPTER_FOLDER = "adapter"
BESIDE_TOKENIZER = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt")
_WRITTEN = {
    *(SIDECAR_FILE, "config.json", FLAT_FILE, PROCESSOR_FILE, LOG_FILE, CURVE_FILE),
    *(*TOKENIZER_FILES, *BESIDE_TOKENIZER),
    *(
        ADAPTER_CONFIG,
        ADAPTER_WEIGHTS,
        f"{ADAPTER_FOLDER}/{ADAPTER_CONFIG}",
        f"{ADAPTER_FOLDER}/{ADAPTER_WEIGHTS}",
    ),
}


def checkpoint_mark(directory: Path) -> str:
    """Whether a directory is a checkpoint that `train` wrote and nothing else: see `atomic_files.Mark`.

    Its sidecar names recipe and data, which nobody writes by hand; a file beside it that `train` never
    writes is the user's, and keeps all of it.
    """
    sidecar = read_json_object(directory / SIDECAR_FILE)
    if not sidecar.keys() >= {"recipe", "data_sha256"}:
        return "is no checkpoint that this program trained"
    return foreign_file(directory, lambda name: name in _WRITTEN or name.startswith(f"{REPORTS}/"))
