"""One question about every picture of a folder: `python examples/ask_folder.py BUNDLE FOLDER "QUESTION"`."""

import sys
from pathlib import Path

from tinyllava_edge import open_bundle


def main(bundle: str, folder: str, question: str) -> None:
    """Print a line for each picture; one that cannot be read ends nothing."""
    pictures = sorted(path for path in Path(folder).iterdir() if path.is_file())
    with open_bundle(bundle) as model:
        for found in model.ask_each(question, pictures, max_tokens=64):
            print(f"{found.picture.name}: {found.error or found.answer}")


if __name__ == "__main__":
    main(*sys.argv[1:])
