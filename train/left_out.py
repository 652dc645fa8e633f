"""The bad records that a run has met, and which of them it goes on without."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from tinyllava_edge.atomic_files import write_bytes
from tinyllava_edge.console import note
from tinyllava_edge.errors import RecordError, UsageError

from .conversations import Located
from .run import LEFT_OUT_FILE, work_directory

_SAID = 10  # that are said when they are met; the end counts them all


class LeftOut:
    """Records that a run does without; they are written down, and hold for the rest of it.

    Args:
        path: JSON lines, one a bad record that was met, in an earlier part of the run too; None keeps none.
        skip: leave out what is met; False ends the run there.
        writes: this process writes it down, and tells.

    Attributes:
        met: by number, the kind of what ended the run or was left out.
        before: numbers of what was left out before the first step, which is not in the order of batches.
    """

    def __init__(self, path: Path | None = None, *, skip: bool = False, writes: bool = True) -> None:
        self._path, self._skip, self._writes = path, skip, writes
        self._lines: dict[int, dict[str, Any]] = {}
        self.met: dict[int, str] = {}
        self.before: set[int] = set()
        if path is not None:
            try:
                for line in _read(path)[0].splitlines():
                    self._keep(json.loads(line))
            except (ValueError, LookupError, TypeError):
                raise UsageError(f"{path}: damaged. Begin anew: --force without --resume.") from None

    def __contains__(self, number: int) -> bool:
        return number in self._lines

    @property
    def hashes(self) -> set[str]:
        """Of the records that are left out."""
        return {line["sha256"] for line in self._lines.values()}

    @property
    def records(self) -> list[dict[str, str]]:
        """Name, kind and hash of each record that is left out, for the sidecar."""
        lines = (self._lines[number] for number in sorted(self._lines))
        return [{key: line[key] for key in ("id", "kind", "sha256")} for line in lines]

    @property
    def counts(self) -> dict[str, int]:
        """How many are left out of each kind."""
        return dict(Counter(line["kind"] for line in self._lines.values()).most_common())

    def add(self, number: int, id_: str, kind: str, sha256: str, why: str = "met") -> None:
        """Write a bad record down; `why` is `before` the run, `met` in it, or what `stopped` it."""
        line = {"number": number, "id": id_, "kind": kind, "sha256": sha256, "why": why}
        self._keep(line)
        if self._path is not None and self._writes:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def meet(self, number: int, record: Located, fault: RecordError) -> None:
        """Leave a record out.

        Raises:
            RecordError: bad records are not to be left out; the message names the ways on.
        """
        why = "met" if self._skip else "stopped"
        self.add(number, record.id, fault.kind, record.sha256, why)
        if not self._skip:
            raise RecordError(
                fault.kind,
                f"{record.where}: {fault} Mend it or drop it from the file, and repeat the command "
                "with --resume; or leave bad records out: --resume --skip-bad.",
            )
        if len(self._lines) <= _SAID and self._writes:
            note(f"left out: {record.where}: {fault}")

    def _keep(self, line: dict[str, Any]) -> None:
        self.met[line["number"]] = line["kind"]
        if line["why"] != "stopped":
            self._lines[line["number"]] = line
        if line["why"] == "before":
            self.before.add(line["number"])


def mend(path: Path) -> None:
    """Drop a last line that a kill has cut short, before more is written; for who holds the run's lock."""
    whole, content = _read(path)
    if whole != content:
        write_bytes(path, whole)


def _read(path: Path) -> tuple[bytes, bytes]:
    """The whole lines of a file that need not be there, and all that is in it."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return b"", b""
    return content[: content.rfind(b"\n") + 1], content


def left_out_before(out: Path) -> set[str]:
    """Hashes of the records that an unfinished run goes on without."""
    return LeftOut(work_directory(out) / LEFT_OUT_FILE).hashes
