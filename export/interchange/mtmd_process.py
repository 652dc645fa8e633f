"""libmtmd in a process of its own: on a file that it does not like it ends the process it is in."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from tinyllava_edge.errors import ExportError
from tinyllava_edge.module_process import module_command

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Encoded:
    """What llama.cpp made of one picture.

    Attributes:
        embeddings: [rows, hidden of the language model].
        taps: what passed through nodes of its graph, by name, outermost dimension first.
    """

    embeddings: Floats
    taps: dict[str, Floats] = field(default_factory=dict)


def encode_pictures(
    mmproj: Path, language: Path, pictures: Sequence[npt.NDArray[np.uint8]], taps: Sequence[str] = ()
) -> list[Encoded]:
    """Encode pictures [h, w, 3] with an mmproj file.

    Args:
        mmproj: the file.
        language: the language model's GGUF file, of which only the header is read.
        pictures: to encode.
        taps: names of nodes to keep, as regular expressions.

    Raises:
        ExportError: llama.cpp refuses a file, or dies of it; its own words are in the message.
    """
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        np.savez(folder / "in.npz", *pictures)
        request = {"mmproj": str(mmproj), "language": str(language), "folder": scratch, "taps": [*taps]}
        done = subprocess.run(
            module_command(__spec__.name, json.dumps(request)),
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "GGML_NO_BACKTRACE": "1"},  # a debugger would be attached
        )
        if done.returncode != 0:
            words = [line for line in done.stderr.splitlines() if line.strip()]
            said = words[-1] if words else f"it ended with code {done.returncode}"
            raise ExportError(said if str(mmproj) in said else f"{mmproj}: llama.cpp dies of it: {said}")
        return [_read(folder / f"{number}.npz") for number in range(len(pictures))]


def _read(path: Path) -> Encoded:
    with np.load(path) as arrays:
        taps = {name: arrays[name] for name in arrays.files}
    return Encoded(taps.pop("embeddings"), taps)


def _main() -> None:
    from .mtmd import open_mtmd

    request = json.loads(sys.argv[1])
    folder = Path(request["folder"])
    try:
        with np.load(folder / "in.npz") as arrays:
            pictures = [arrays[name] for name in arrays.files]
        with open_mtmd(
            Path(request["mmproj"]), Path(request["language"]), threads=os.cpu_count() or 1
        ) as mtmd:
            for number, picture in enumerate(pictures):
                embeddings, taps = mtmd.encode(picture, request["taps"])
                arrays_out: dict[str, Any] = {"embeddings": embeddings, **taps}
                np.savez(folder / f"{number}.npz", **arrays_out)
    except ExportError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    _main()
