"""The tower and the language model of the shipped nano, each a directory as transformers saves it.

    python -m examples.nano.parts -o DIR

writes DIR/tower and DIR/llm, which are what `train --tower` and `--llm` take, to train another connector
between them.
"""

import shutil
from pathlib import Path
from typing import Annotated

import typer
from safetensors import safe_open
from safetensors.torch import save_file

from tinyllava_edge.atomic_files import output_directory, write_json
from tinyllava_edge.checkpoint.files import PROCESSOR_FILE, read_json_object
from tinyllava_edge.checkpoint.layouts import FLAT_FILE
from tinyllava_edge.checkpoint.names import NANO, checkpoint_path

_PARTS = {
    "tower": ("vision_config", "vision_tower._vision_tower.", (PROCESSOR_FILE,)),
    "llm": (
        "text_config",
        "language_model.",
        ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"),
    ),
}


def main(out: Annotated[Path, typer.Option("-o", "--out", help="Directory of the parts.")]) -> None:
    """Write both parts of nano."""
    nano = checkpoint_path(NANO)
    config = read_json_object(nano / "config.json")
    with output_directory(out) as work, safe_open(nano / FLAT_FILE, "pt") as weights:
        for part, (key, prefix, files) in _PARTS.items():
            (work / part).mkdir()
            write_json(work / part / "config.json", config[key])
            names = [name for name in list(weights.keys()) if name.startswith(prefix)]
            state = {name.removeprefix(prefix): weights.get_tensor(name) for name in names}
            save_file(state, work / part / FLAT_FILE, metadata={"format": "pt"})
            for name in files:
                shutil.copyfile(nano / name, work / part / name)


if __name__ == "__main__":
    typer.run(main)
