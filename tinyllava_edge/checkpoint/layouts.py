"""Where a checkpoint's weights may be, and what a directory is that holds none.

Source: docs/sources/tinyllava.md#checkpoint-layouts.
"""

import re
from os.path import lexists  # a link that leads nowhere is not absent, but damaged
from pathlib import Path

from tinyllava_edge.errors import CheckpointError, MissingFileError

from .files import read_json_object

FLAT_FILE = "model.safetensors"
TOKENIZER_FILES = ("tokenizer.model", "vocab.json", "tokenizer.json")  # any of them is a tokenizer
FLAT_INDEX = "model.safetensors.index.json"
PARTS = ("vision_tower", "connector", "language_model")
PICKLE_FILE = "pytorch_model.bin"  # of a whole model, or in each part's sub-directory
PICKLE_INDEX = "pytorch_model.bin.index.json"
PROJECTOR_FILE = "mm_projector.bin"  # what LLaVA's pretraining leaves: a connector alone
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_PICKLE = "adapter_model.bin"

FLAT = "flat safetensors"
SHARDED = "sharded safetensors"
FLAT_PICKLE = "one pytorch_model.bin"
SHARDED_PICKLES = "sharded pytorch_model.bin"
FOLDERS = "three sub-directories"  # docs/sources/tinyllava.md#three-sub-directories
LORA = "LoRA adapter over three sub-directories"
ADAPTER = "LoRA adapter over another checkpoint"
LEGACY = "TinyLLaVABench (legacy)"
LINE = "LLaVA's code line"  # docs/sources/llava_line.md
PROJECTOR = "mm_projector.bin over a language model"
LLAVA = "transformers LlavaForConditionalGeneration"
NANOVLM = "nanoVLM"

# Files of a whole model; transformers takes the first that is there.
WHOLE = {
    FLAT_FILE: FLAT,
    FLAT_INDEX: SHARDED,
    PICKLE_FILE: FLAT_PICKLE,
    PICKLE_INDEX: SHARDED_PICKLES,
}
_SHARD_NAME = re.compile(r"\w[\w.-]*\.(?:safetensors|bin)")
_LFS_POINTER = b"version https://git-lfs"
_ZERO_SCRIPT = "zero_to_fp32.py"
# Names of config.json and adapter_config.json that say which language model or checkpoint came before.
_BASE_KEYS = ("base_model_name_or_path", "llm_model_name_or_path", "_name_or_path")


def whole_file(path: Path) -> Path | None:
    """The file that holds, or lists, all weights of a directory."""
    return next((path / name for name in WHOLE if lexists(path / name)), None)


def other_whole_files(path: Path) -> list[str]:
    """Names of further files of a whole model, which are not read."""
    found = [name for name in WHOLE if lexists(path / name)]
    return found if has_all_parts(path) else found[1:]


def has_all_parts(path: Path) -> bool:
    """Whether there is a pickle of each part in its sub-directory."""
    return all(lexists(path / part / PICKLE_FILE) for part in PARTS)


def adapter_file(path: Path) -> Path:
    """The weights of an adapter; PEFT takes the safetensors first."""
    first, second = path / ADAPTER_WEIGHTS, path / ADAPTER_PICKLE
    return second if lexists(second) and not lexists(first) else first


def is_adapter(path: Path) -> bool:
    """Whether a directory has an adapter in it."""
    return lexists(path / ADAPTER_CONFIG) or lexists(adapter_file(path))


def base_names(path: Path) -> list[str]:
    """What an adapter's directory says of its base."""
    found = []
    for name in (ADAPTER_CONFIG, "config.json"):
        values = read_json_object(path / name) if lexists(path / name) else {}
        found += [str(values[key]) for key in _BASE_KEYS if values.get(key)]
    return list(dict.fromkeys(found))


def listed_shards(index: Path) -> dict[Path, set[str]]:
    """The shards of an index, in the order of their names: what each should hold.

    Raises:
        CheckpointError: the index is damaged, or a shard is not a file beside it.
    """
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: weight_map is missing or empty.")
    suffix = ".bin" if index.name == PICKLE_INDEX else ".safetensors"
    shards: dict[Path, set[str]] = {}
    for key, name in weight_map.items():
        if not isinstance(name, str) or not _SHARD_NAME.fullmatch(name) or not name.endswith(suffix):
            raise CheckpointError(f"{index}: {key} is in {name!r}; a shard is a {suffix} file beside it.")
        shards.setdefault(index.parent / name, set()).add(key)
    return dict(sorted(shards.items()))


def check_is_there(path: Path) -> Path:
    """Refuse a file of weights that is missing or a pointer; opening a pipe would wait for ever."""
    if not path.is_file():
        absent = "no regular file" if lexists(path) else "missing"
        error = CheckpointError if lexists(path) else MissingFileError
        raise error(f"{path}: {absent}. Download or copy the checkpoint again.")
    with path.open("rb") as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:  # a clone without Git LFS
            raise CheckpointError(f"{path}: a pointer of Git LFS, not the file. Run `git lfs pull` there.")
    return path


def no_weights(path: Path) -> MissingFileError:
    """What a directory is that holds no weights of a whole model, and the line that mends it."""
    pickles = [path / part / PICKLE_FILE for part in PARTS]
    loose = [*sorted(path.glob("*-of-*.safetensors")), *sorted(path.glob("pytorch_model-*-of-*.bin"))]
    steps, shards = _numbered(path, "checkpoint-*"), _numbered(path, "global_step*")
    if any(pickle.exists() for pickle in pickles):
        missing = ", ".join(str(pickle) for pickle in pickles if not pickle.exists())
        text = f"{missing}: missing. Download or copy the checkpoint again."
    elif is_adapter(path) and (lexists(adapter_file(path)) or not shards):
        text = _adapter_alone(path)
    elif shards or (path / _ZERO_SCRIPT).exists():
        text = _zero_shards(path, shards[-1].name if shards else "whose global_step directory is missing")
    elif loose:
        index = PICKLE_INDEX if loose[0].suffix == ".bin" else FLAT_INDEX
        text = f"{path / index}: missing, which lists the shards beside it. Copy it, too."
    elif steps:
        text = f"{path}: holds no weights itself. Give one of the run's steps, as {steps[-1]}."
    else:
        text = (
            f"{path}: holds no weights. Expected {FLAT_FILE} or {PICKLE_FILE}, or {FLAT_INDEX} or "
            f"{PICKLE_INDEX} with its shards, {PROJECTOR_FILE} of a pretraining by LLaVA's code, or "
            f"sub-directories {', '.join(PARTS)} with {PICKLE_FILE}."
        )
    return MissingFileError(text)


def _numbered(path: Path, pattern: str) -> list[Path]:
    return sorted(path.glob(pattern), key=lambda step: (len(step.name), step.name))


def _adapter_alone(path: Path) -> str:
    if not lexists(adapter_file(path)):
        return f"{adapter_file(path)}: missing, beside {ADAPTER_CONFIG}. Download or copy it again."
    names = base_names(path)
    said = f" ({', '.join(map(repr, names))} by its files)" if names else ", which its files do not name"
    return (
        f"{adapter_file(path)}: a LoRA adapter without its base, as a trainer's checkpoint-N is. Give the "
        f"whole checkpoint that this run began with{said} as BASE, and both are merged: "
        f"tinyllava-edge export {path} --sources BASE -o OUTPUT. What the run trained in full, such as a "
        "connector, is not in an adapter: the run's last output has it."
    )


def _zero_shards(path: Path, where: str) -> str:
    """The script beside the shards takes a file's name in older versions of DeepSpeed, else a directory."""
    script = path / _ZERO_SCRIPT
    is_older = script.is_file() and b"output_dir" not in script.read_bytes()[: 1 << 20]
    command = f"python {_ZERO_SCRIPT}" if script.is_file() else "python -m deepspeed.utils.zero_to_fp32"
    where_to, then = (PICKLE_FILE, ", with --allow-pickle") if is_older else (". --safe_serialization", "")
    return (
        f"{path}: ZeRO shards of DeepSpeed ({where}), not weights yet. Run there: {command} . {where_to}; "
        f"then give this directory again{then}."
    )
