"""Every record of a data file is looked at before long work, in parallel: bad ones are known all at once.

What was found is remembered until the data file, a picture or what the check depends on changes.
"""

import hashlib
import json
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tinyllava_edge.atomic_files import write_json
from tinyllava_edge.cache import cache_folder, is_private
from tinyllava_edge.console import print_json, progress
from tinyllava_edge.device import read_cpu
from tinyllava_edge.errors import TinyLlavaEdgeError
from tinyllava_edge.printable import printable
from tinyllava_edge.verified_files import SETTLED_AFTER_NS, sha256_of_file

MISSING, DAMAGED, OTHER = "missing picture", "damaged picture", "bad record"
_VERSION = 3  # of what is remembered; counted up whenever a check finds more than it did
_REMEMBERED = 100  # reports
_PRINTED = 200  # records of one kind; the others are counted, and in --json
_MAX_WORKERS = 8  # each holds one picture, some 300 MB at the limit of 40 megapixels
_AHEAD = 64  # records handed to the workers before the first of them is done
Record = TypeVar("Record")


@dataclass(frozen=True, kw_only=True)
class BadRecord:
    """What was found of one record.

    Attributes:
        index: its place in the file, from 0.
        id: as the file names it.
        kind: what is counted together.
        reason: what was expected and found.
    """

    file: str
    index: int
    id: str
    kind: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """What a check found, in the order of the file.

    Attributes:
        bad: records that cannot be used.
        noted: records that can, with something to know: what is cut of them, for one.
        cached: whether it was remembered from an earlier check.
    """

    file: str
    records: int
    bad: tuple[BadRecord, ...]
    noted: tuple[BadRecord, ...]
    cached: bool = False


class CheckKey(NamedTuple):
    """What a report is remembered by."""

    of_file: str  # the data's path and size, and the facts: known without reading them
    sha256: str
    newest_ns: int  # last change of a picture


# Looks at one record: kind and reason of what is to be noted; raises RecordError, or any of our errors, where
# it is bad. Called by several threads at once.
Check = Callable[[Record], Sequence[tuple[str, str]]]


def check_records(
    file: Path,
    records: Sequence[Record],
    check: Check[Record],
    *,
    name: Callable[[int], str],
    key: CheckKey | None = None,
) -> CheckReport:
    """Look at every record once, on several threads, with progress on stderr; or remember what was found.

    Pictures are decoded outside Python's lock: measured, threads are as fast as processes.

    Args:
        file: where the records are from, for the report.
        records: what `check` gets, one at a time.
        check: see `Check`.
        name: of the record at a place, asked for where something is found.
        key: from `check_key`; None neither looks for an earlier report nor keeps this one.
    """
    if key is not None:
        if (known := read_report(key)) is not None:
            return known
        age_ns = time.time_ns() - key.newest_ns
        time.sleep(max(0, min(SETTLED_AFTER_NS, SETTLED_AFTER_NS - age_ns)) / 1e9)
    bad, noted, shown = [], [], _text(file)
    found = closing(_in_parallel(check, records))
    with found as outcomes, _progress(f"check {file.name}", len(records)) as advance:
        for index, outcome in outcomes:
            advance()
            if not outcome:
                continue
            of_it = partial(BadRecord, file=shown, index=index, id=_text(name(index)))
            if isinstance(outcome, TinyLlavaEdgeError):
                bad.append(of_it(kind=getattr(outcome, "kind", OTHER), reason=_text(outcome)))
            else:
                noted += [of_it(kind=kind, reason=_text(reason)) for kind, reason in outcome]
    report = CheckReport(file=shown, records=len(records), bad=tuple(bad), noted=tuple(noted))
    if key is not None:
        _remember(key, report)
    return report


def _text(value: object) -> str:
    """As a file or a terminal may have it: what is no Unicode is written out."""
    return str(value).encode("utf-8", "backslashreplace").decode()


def _in_parallel(
    check: Check[Record], records: Sequence[Record]
) -> Generator[tuple[int, Sequence[tuple[str, str]] | TinyLlavaEdgeError]]:
    def look(record: Record) -> Sequence[tuple[str, str]] | TinyLlavaEdgeError:
        try:
            return check(record)
        except TinyLlavaEdgeError as error:
            return error

    pool = ThreadPoolExecutor(min(_MAX_WORKERS, read_cpu().logical_cpus))
    waiting: deque[Future[Any]] = deque()
    try:
        for index in range(len(records) + _AHEAD):
            if index < len(records):
                waiting.append(pool.submit(look, records[index]))
            if index >= _AHEAD and waiting:
                yield index - _AHEAD, waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C waits for the pictures at hand alone


@contextmanager
def _progress(name: str, total: int) -> Iterator[Callable[[], None]]:
    with progress() as bar:
        task = bar.add_task(printable(name), total=total)
        yield lambda: bar.advance(task)


def check_key(file: Path, pictures: Iterable[Path | str | None], facts: Mapping[str, Any]) -> CheckKey:
    """Hash of the data file, of the facts, and of what the pictures are: path, size, mtime and ctime of each.

    A picture that is mended, or damaged, is another. Its change within one tick of the file system's clock
    would leave no trace, so a check waits until the newest is two seconds old.

    Args:
        file: the data.
        pictures: of the records; one that is not there is one that is not there.
        facts: what else the outcome depends on; JSON values.

    Raises:
        OSError: the data file cannot be read.
    """
    start = [_VERSION, os.path.realpath(file), sha256_of_file(file), facts]
    digest = hashlib.sha256(json.dumps(start, sort_keys=True).encode())
    newest = 0
    for path in dict.fromkeys(path for path in pictures if path is not None):
        try:
            status = os.stat(path)
            state = f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
            newest = max(newest, status.st_ctime_ns)
        except (OSError, ValueError):
            state = "-"
        digest.update(f"{os.path.abspath(path)}\0{state}\n".encode(errors="surrogatepass"))
    return CheckKey(_of_file(file, facts), digest.hexdigest(), newest)


def has_report(file: Path, facts: Mapping[str, Any]) -> bool:
    """Whether an earlier look at this file may be remembered; only then is its key worth making."""
    return any(_folder().glob(f"{_of_file(file, facts)}-*.json"))


def _of_file(file: Path, facts: Mapping[str, Any]) -> str:
    start = [_VERSION, os.path.realpath(file), os.stat(file).st_size, facts]
    return hashlib.sha256(json.dumps(start, sort_keys=True).encode()).hexdigest()[:32]


def _folder() -> Path:
    return cache_folder() / "checks"


def _path(key: CheckKey) -> Path:
    return _folder() / f"{key.of_file}-{key.sha256}.json"


def read_report(key: CheckKey) -> CheckReport | None:
    """The remembered report; None where there is none, or it is damaged or open to others."""
    try:
        with _path(key).open(encoding="utf-8") as file:
            if not is_private(os.fstat(file.fileno())):
                return None
            raw = json.load(file)
        found = {name: tuple(BadRecord(**record) for record in raw[name]) for name in ("bad", "noted")}
        return CheckReport(file=raw["file"], records=raw["records"], cached=True, **found)
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def _remember(key: CheckKey, report: CheckReport) -> None:
    """Keep it beside the newest others; where that fails, the next start checks again."""
    with suppress(OSError):
        _folder().mkdir(parents=True, exist_ok=True, mode=0o700)
        write_json(_path(key), asdict(report), mode=0o600)
        reports = sorted(_folder().glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
        for old in reports[:-_REMEMBERED]:
            old.unlink(missing_ok=True)


def count_kinds(found: Sequence[BadRecord]) -> dict[str, int]:
    """How many there are of each kind, most first."""
    return dict(Counter(record.kind for record in found).most_common())


def say_kinds(counts: Mapping[str, int]) -> str:
    """Counts as a phrase: `2 x missing picture, 1 x damaged picture`."""
    return ", ".join(f"{number} x {kind}" for kind, number in counts.items())


def print_report(report: CheckReport, *, as_json: bool) -> None:
    """Print all that was found on stdout: counts by kind, then each record by file and id."""
    if as_json:
        counts = {name: count_kinds(getattr(report, name)) for name in ("bad", "noted")}
        print_json({**asdict(report), "counts": counts})
        return
    what = [f"{report.records} records checked{' before, unchanged' if report.cached else ''}"]
    for name, records in (("bad", report.bad), ("to note", report.noted)):
        what.append(f"{len(records)} {name}" + (f" ({say_kinds(count_kinds(records))})" if records else ""))
    lines = [f"{report.file}: {', '.join(what)}"]
    found: Counter[str] = Counter()
    for record in (*report.bad, *report.noted):
        found[record.kind] += 1
        if found[record.kind] > _PRINTED:
            continue
        lines.append(f"{record.file}: record {record.index} (id {record.id}): {record.kind}: {record.reason}")
    for kind, number in found.items():
        if number > _PRINTED:
            lines.append(f"{report.file}: {number - _PRINTED:,} more of {kind}: --json lists them")
    sys.stdout.write("".join(printable(" ".join(line.split())) + "\n" for line in lines))
