"""`train --check`: every record is looked at as training will, before any of it is trained on."""

import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from tinyllava_edge.checkpoint.names import NANO, is_shipped
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.console import note
from tinyllava_edge.picture_check import PictureCheck
from tinyllava_edge.record_check import (
    BadRecord,
    CheckKey,
    CheckReport,
    check_key,
    check_records,
    has_report,
    read_report,
)
from tinyllava_edge.work_places import temporary_place

from .assemble import describe
from .conversations import BadRow, Conversation
from .options import FinetuneOptions
from .ranks import is_first
from .records import Data, read_data
from .samples import Samples, open_samples, open_source

CUT = "cut"
_STRING = rb'"(?:[^"\\]|\\.)*"'
_PICTURE = re.compile(
    rb'"(?:images?|path|(?:image_)?url)"\s*:\s*(%b|\[(?:[^"\]]|%b)*\])' % (_STRING, _STRING)
)


def check_data(options: FinetuneOptions) -> CheckReport:
    """Look at every record of every file, or remember what an earlier look found; no weights are read.

    Raises:
        DataError: a data file cannot be read.
        CheckpointError: what the checkpoint says of pictures and texts is missing or damaged.
    """
    data = read_data(options)
    with described(options) as source:
        samples = open_samples(source, options)
    found = [_check(part, samples) for _, part in data.parts]
    return CheckReport(
        file=", ".join(report.file for report in found),
        records=len(data),
        bad=tuple(record for report in found for record in report.bad),
        noted=tuple(record for report in found for record in report.noted),
        cached=all(report.cached for report in found),
    )


def _check(data: Data, samples: Samples) -> CheckReport:
    return check_records(
        data.files[0].path,
        data,
        Looker(samples),
        name=lambda index: data[index].id,
        key=_key(data, samples),
    )


def known_bad(data: Data, samples: Samples, options: FinetuneOptions) -> Mapping[int, BadRecord]:
    """What a check of these data with this model found, by number.

    A note if there was none of a file, and what is seen at once.
    """
    found: dict[int, BadRecord] = {}
    is_checked = True
    for start, part in data.parts:
        known = has_report(part.files[0].path, _facts(part, samples))
        report = read_report(_key(part, samples)) if known else None
        is_checked = is_checked and report is not None
        found |= {start + record.index: record for record in (report.bad if report else ())}
    if is_checked:
        return found
    if is_first():
        note(f"the data were not checked: a bad record shows when it is met. To check: {_command(options)}")
    return {**data.bad, **found}


class Looker:
    """Looks at a record as training will."""

    def __init__(self, samples: Samples) -> None:
        self._samples, self._open = samples, PictureCheck(samples.reader.how)

    def __call__(self, record: Conversation | BadRow) -> Sequence[tuple[str, str]]:
        """What is to be known of it, as what is cut.

        Raises:
            RecordError: it is bad.
        """
        if isinstance(record, BadRow):
            raise record.fault
        limit = self._samples.limit
        positions = self._samples.encode(record).positions
        for picture in record.pictures:
            self._open(picture)
        if positions <= limit:
            return record.notes
        return [
            *record.notes,
            (CUT, f"{positions} positions, the model takes {limit}: the last {positions - limit} go."),
        ]


def _command(options: FinetuneOptions) -> str:
    """The line that checks the data of a run."""
    words: list[object] = ["tinyllava-edge", "train", "--check"]
    for file in options.files:
        words += ["--data", file.path, "--images", file.images]
    if options.parts is None:
        words += ["--from", NANO if is_shipped(options.source) else options.source]
    else:
        words += options.parts.words
    length = options.training.model_max_length
    budgets = ",".join(map(str, options.budgets)) or None
    given = {
        "--budgets": budgets,
        "--template": options.template,
        "--sources": options.sources,
        "--max-length": length,
    }
    for name, value in given.items():
        words += [] if value is None else [name, value]
    return shlex.join(map(str, words))


def _key(data: Data, samples: Samples) -> CheckKey:
    return check_key(data.files[0].path, _pictures(data), _facts(data, samples))


def _facts(data: Data, samples: Samples) -> Mapping[str, Any]:
    return {"command": "train", "images": str(data.files[0].images.absolute()), **samples.facts}


def _pictures(data: Data) -> Iterator[str]:
    """Paths of all that a record calls a picture, without the time that parsing takes."""
    for row in data.rows[0]:
        for found in _PICTURE.findall(row):
            with suppress(ValueError, TypeError):
                value = json.loads(found)
                for path in [value] if isinstance(value, str) else value:
                    yield os.path.join(data.files[0].images, path)


@contextmanager
def described(options: FinetuneOptions) -> Iterator[Checkpoint]:
    """The checkpoint to start from; of one that is given in parts, all but the weights."""
    if options.parts is None:
        yield open_source(options, options.source)
        return
    with temporary_place() as folder:
        describe(folder, options.parts)
        yield open_source(options, folder)
