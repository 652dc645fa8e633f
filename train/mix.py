"""Several data files with weights -> the records of an epoch."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyllava_edge.errors import UsageError

if TYPE_CHECKING:  # the command reads this file, and `--help` is to be quick
    import numpy as np
    import numpy.typing as npt

MOST = 1000.0
SHARE = "{path}: {records} records, weight {weight:g}: {samples} samples an epoch"  # see `shares`


@dataclass(frozen=True, kw_only=True)
class DataFile:
    """A data file of a run.

    Attributes:
        path: LLaVA JSON.
        images: folder of its pictures.
        weight: of its records in an epoch: below 1 a share of them, above 1 they are repeated.

    Raises:
        UsageError: the weight is out of range.
    """

    path: Path
    images: Path
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.weight <= MOST:
            raise UsageError(
                f"{self.path}: weight {self.weight:g}, expected above 0 to {MOST:g}. Leave out a file that "
                "is not to be used."
            )


def pair_files(data: Sequence[Path], images: Sequence[Path], mix: str | None) -> list[DataFile]:
    """The files of `--data`, `--images` and `--mix`: a folder for each file, one for all, or each file's own.

    Raises:
        UsageError: the numbers do not fit together, or a weight is no number.
    """
    count = len(data)
    if not data and (images or mix):
        raise UsageError("--images and --mix are of --data, which is not given.")
    if len(images) not in (0, 1, count):
        raise UsageError(
            f"--images is there {len(images)} times, --data {count}: give a folder for each file, or one "
            "for all."
        )
    try:
        weights = [1.0] * count if mix is None else [float(weight) for weight in mix.split(",")]
    except ValueError:
        weights = []
    if len(weights) != count:
        raise UsageError(f"--mix {mix}: expected {count} numbers with commas, one for each --data, as 1,0.5.")
    folders = images or [path.parent for path in data]
    folders = [*folders] * (count if len(folders) < count else 1)
    return [
        DataFile(path=path, images=folder, weight=weight)
        for path, folder, weight in zip(data, folders, weights, strict=False)
    ]


def draw(files: Sequence[DataFile], counts: Sequence[int], seed: int) -> "npt.NDArray[np.int64]":
    """The records of an epoch by number, the files' one after the other; every epoch has the same.

    Args:
        files: with their weights.
        counts: records of each.
        seed: decides which records make a share, for each file by its place.

    Raises:
        UsageError: a file contributes nothing.
    """
    import numpy as np

    found, start = [], 0
    for at, (file, count) in enumerate(zip(files, counts, strict=True)):
        times, share = divmod(file.weight, 1.0)
        some = np.random.default_rng([seed & (2**64 - 1), at]).permutation(count)[: round(share * count)]
        numbers = np.concatenate([np.tile(np.arange(count), int(times)), np.sort(some)])
        if not len(numbers):
            raise UsageError(f"{file.path}: weight {file.weight:g} leaves none of its {count} records.")
        found.append(start + numbers)
        start += count
    return np.concatenate(found)


def shares(files: Sequence[DataFile], counts: Sequence[int], numbers: Sequence[int]) -> list[dict[str, Any]]:
    """What each file contributes to an epoch of these numbers: see `draw`, and docs/json.md."""
    import numpy as np

    samples = np.histogram(numbers, bins=np.cumsum([0, *counts]) - 0.5)[0].tolist()
    return [
        {
            **asdict(file),
            "path": str(file.path),
            "images": str(file.images),
            "records": count,
            "samples": of_it,
        }
        for file, count, of_it in zip(files, counts, samples, strict=True)
    ]
