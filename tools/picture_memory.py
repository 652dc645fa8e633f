"""Peak anonymous memory of opening a picture, over what the process took before; one line a file.

python -m tools.picture_memory [FILE]...   without files: a JPEG of 108 megapixels of noise, made here.
"""

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from tinyllava_edge.console import stdout
from tinyllava_edge.image import open_picture
from tinyllava_edge.memory import watched_memory

SIDES = (9000, 12000)


def measure_peak_bytes(path: Path) -> int:
    """In a process of its own; what Python and the libraries took is left out."""
    command = [sys.executable, "-m", "tools.picture_memory", "--one", str(path)]
    return int(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def _write_noise(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (SIDES[0] // 8, SIDES[1] // 8, 3), dtype=np.uint8)
    Image.fromarray(noise).resize(SIDES[::-1]).save(path, quality=90)


def _main(arguments: list[str]) -> None:
    if arguments[:1] == ["--one"]:
        with watched_memory() as watch:
            before = watch.peak_bytes() or 0
            open_picture(arguments[1])
            stdout.print(str((watch.peak_bytes() or 0) - before))
        return
    with TemporaryDirectory() as folder:
        made = Path(folder) / f"{SIDES[1]}x{SIDES[0]}.jpg"
        if not arguments:
            _write_noise(made)
        for path in map(Path, arguments or [str(made)]):
            stdout.print(f"{path.name}: {measure_peak_bytes(path) / (1 << 20):.0f} MiB")


if __name__ == "__main__":
    _main(sys.argv[1:])
