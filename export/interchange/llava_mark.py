"""Which directories `--interchange transformers` wrote, so that `--force` replaces nothing else."""

from pathlib import Path

from tinyllava_edge.atomic_files import foreign_file
from tinyllava_edge.checkpoint.files import read_json_object

CONFIG_KEY, CONFIG_VALUE = "tinyllava_edge", "interchange"
_FILES = (
    *("config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json"),
    *("chat_template.jinja", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
)


def llava_mark(root: Path) -> str:
    """Whether a directory is one of these and nothing but it: see `atomic_files.Mark`."""
    if read_json_object(root / "config.json").get(CONFIG_KEY) != CONFIG_VALUE:
        return "is no directory that --interchange transformers wrote"
    return foreign_file(root, lambda name: name in _FILES or name.startswith("model"))
