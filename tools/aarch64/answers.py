"""What a bundle answers, one line of JSON a picture: run here, and under emulation, by `tools.aarch64`."""

import json
import sys
from pathlib import Path

from PIL import Image

import tinyllava_edge

QUESTION = "What is this?"


def print_answers(bundle: Path, vision: str, language: str, pictures: list[str]) -> None:
    """Ask about each picture."""
    with tinyllava_edge.open_bundle(bundle, vision=vision, language=language) as model:
        for path in pictures:
            picture = Image.open(path)
            stream = model.answer([(QUESTION, None)], picture)
            text = "".join(stream)
            record = {"picture": Path(path).name, "ids": stream.ids, "finish": stream.finish, "answer": text}
            sys.stdout.write(json.dumps(record) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    print_answers(Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4:])
