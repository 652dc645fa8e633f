"""`train --preview`: samples as the model will see them, and how long samples are. docs/training.md#preview.

Weights are not read and pictures not opened.
"""

from collections import Counter
from collections.abc import Mapping
from itertools import groupby
from typing import Any

import numpy as np
from rich.text import Text

from tinyllava_edge.checkpoint.config import IGNORE_LABEL, IMAGE_TOKEN_ID
from tinyllava_edge.console import print_json, progress, stdout
from tinyllava_edge.errors import RecordError
from tinyllava_edge.printable import printable
from tinyllava_edge.prompt import TextTokenizer
from tinyllava_edge.record_check import say_kinds

from .batches import Encoded
from .check import described
from .conversations import BadRow, Conversation
from .mix import SHARE, draw, shares
from .options import FinetuneOptions
from .records import read_data
from .sampler import EpochSampler
from .samples import Samples, open_samples

MEASURED = 10_000  # samples, whose lengths say what all are like
STYLE = {"learned": "bold green", "picture": "cyan", "text": ""}


def print_preview(found: Mapping[str, Any], *, as_json: bool) -> None:
    """Print it on standard output; where that has no colour, what is learned stands in [[ ]]."""
    if as_json:
        print_json({**found})
        return
    has_colour = stdout.color_system is not None
    for share in found["data"]:
        _say(SHARE.format(**share))
    for at, sample in enumerate(found["samples"]):
        of = ", ".join((f"record {sample['index']} (id {sample['id']})", *sample["pictures"]))
        _say(f"\n{at + 1}: {sample['file']}: {of}: {sample['positions']} positions")
        text = Text()
        for piece in sample["pieces"]:
            said, kind = printable(piece["text"]), piece["kind"]
            text.append(f"[[{said}]]" if kind == "learned" and not has_colour else said, STYLE[kind])
        text.append(f" <cut: {sample['cut']} positions>" if sample["cut"] else "", "red")
        stdout.print(text, soft_wrap=True)
    if lengths := found["lengths"]:
        of_all = "positions of {samples} samples: median {median}, 95 % up to {p95}, longest {longest}"
        cut = f"{100 * lengths['cut']:.1f} % are longer than {found['max_length']}, and cut"
        _say(f"\n{of_all.format(**lengths)}; {cut}")
    if found["bad"]:
        _say(f"passed over as bad: {say_kinds(found['bad'])}. train --check lists all.")


def _say(line: str) -> None:
    stdout.print(printable(line), highlight=False, soft_wrap=True)


def preview_data(options: FinetuneOptions, *, shown: int = 10) -> dict[str, Any]:
    """Look at the first samples of a random order of the data; the fields of docs/json.md.

    Args:
        options: of the run.
        shown: samples that are shown; of at most 10,000 the lengths are measured.

    Raises:
        DataError: a data file cannot be read.
        CheckpointError: what the checkpoint says of pictures and texts is missing or damaged.
        UsageError: a file contributes nothing.
    """
    data, seed = read_data(options), options.training.seed
    drawn = draw(data.files, data.counts, seed)
    with described(options) as source:
        samples = open_samples(source, options)
    order = drawn[list(EpochSampler(len(drawn), seed))[: max(MEASURED, shown)]].tolist()
    found: list[dict[str, Any]] = []
    lengths: list[int] = []
    bad: Counter[str] = Counter()
    with progress() as bar:
        task = bar.add_task("lengths", total=len(order))
        for record in (data[number] for number in order):
            bar.advance(task)
            try:
                if isinstance(record, BadRow):
                    raise record.fault
                encoded = samples.encode(record)
            except RecordError as fault:
                bad[fault.kind] += 1
                continue
            lengths.append(encoded.positions)
            if len(found) < shown:
                found.append(_shown(record, encoded, samples))
    return {
        "data": shares(data.files, data.counts, drawn.tolist()),
        "max_length": samples.limit,
        "samples": found,
        "lengths": _lengths(lengths, samples.limit) if lengths else None,
        "bad": dict(bad),
    }


def _lengths(found: list[int], limit: int) -> dict[str, Any]:
    """Of the samples, and the share among them that is cut."""
    median, p95 = np.percentile(found, (50, 95), method="inverted_cdf").tolist()
    cut = sum(length > limit for length in found) / len(found)
    return {"samples": len(found), "median": median, "p95": p95, "longest": max(found), "cut": cut}


def _shown(record: Conversation, encoded: Encoded, samples: Samples) -> dict[str, Any]:
    return {
        "file": str(record.file),
        "index": record.index,
        "id": record.id,
        "pictures": [str(picture) for picture in record.pictures],
        "positions": encoded.positions,
        "cut": max(0, encoded.positions - samples.limit),
        "pieces": cut_pieces(encoded, samples.tokenizer, samples.num_tokens, samples.limit),
    }


def cut_pieces(
    encoded: Encoded, tokenizer: TextTokenizer, num_tokens: int, limit: int
) -> list[dict[str, Any]]:
    """What is left of a sample within `limit` positions, by what it is; a picture is `<image xK>`."""
    pieces: list[dict[str, Any]] = []
    pairs, left = zip(encoded.ids, encoded.labels, strict=True), limit
    for is_picture, together in groupby(pairs, key=lambda pair: pair[0] == IMAGE_TOKEN_ID):
        if is_picture:
            for _ in together:
                rows = min(num_tokens, left)
                left -= rows
                if rows:
                    pieces.append({"kind": "picture", "text": f"<image x{rows}>", "positions": rows})
            continue
        kept = list(together)[:left]
        left -= len(kept)
        ids, done, before = [token for token, _ in kept], 0, ""
        for learned, same in groupby(kept, key=lambda pair: pair[1] != IGNORE_LABEL):
            size = len(list(same))
            done += size
            text = tokenizer.decode(ids[:done], special=True)  # of a part alone, spaces would be lost
            kind = "learned" if learned else "text"
            pieces.append({"kind": kind, "text": text[len(before) :], "positions": size})
            before = text
    return pieces
