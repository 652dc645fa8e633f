"""`eval --check`: every picture opened and every prompt counted once, before the model is."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tinyllava_edge.bundle import TOKENIZER_FILE, Bundle
from tinyllava_edge.errors import DataError, RecordError
from tinyllava_edge.picture_check import PictureCheck
from tinyllava_edge.prompt import TextTokenizer, place_markers
from tinyllava_edge.record_check import CheckKey, CheckReport, check_key, check_records

from .answers import TOO_LONG
from .question import Question, Record
from .tables import TablePicture


@dataclass(frozen=True, kw_only=True)
class Looked:
    """What is looked at: the records of a file, for a bundle, with so many tokens for an answer."""

    file: Path
    records: Sequence[Record]
    bundle: Bundle
    max_tokens: int
    context_length: int | None = None  # positions, where others than the default are asked for

    def key(self) -> CheckKey:
        """What the outcome is remembered by."""
        questions = [question for record in self.records if isinstance(record, tuple) for question in record]
        texts = hashlib.sha256(repr([(q.record, q.text, _known(q)) for q in questions]).encode()).hexdigest()
        facts = {
            "bundle": self.bundle.manifest_sha256,
            "max_tokens": self.max_tokens,
            "context": self.context_length,
            "questions": texts,
        }
        return check_key(self.file, [_file(question) for question in questions], facts)

    def check(self) -> CheckReport:
        """Look at every record, in parallel, or remember what was found; arguments as in `check_records`."""
        manifest = self.bundle.manifest
        tokenizer_json = self.bundle.read_text(TOKENIZER_FILE)
        tokenizer = TextTokenizer(tokenizer_json, bos_id=manifest.prompt.bos_id, checked=True)
        open_picture = PictureCheck(manifest.vision.preprocessing)

        def look(record: Record) -> Sequence[tuple[str, str]]:
            if isinstance(record, DataError):
                raise record
            for question in record:
                if question.image is not None:
                    shown = question.image
                    open_picture(shown.content if isinstance(shown, TablePicture) else shown, str(shown))
                self._check_length(tokenizer, question)
            return ()

        ids = [str(r[0].id) if isinstance(r, tuple) and r else "?" for r in self.records]
        return check_records(self.file, self.records, look, name=ids.__getitem__, key=self.key())

    def _check_length(self, tokenizer: TextTokenizer, question: Question) -> None:
        manifest = self.bundle.manifest
        pictures = int(question.image is not None)
        turns = place_markers([(question.text, None)], pictures, manifest.prompt.template)
        ids = tokenizer.encode(manifest.prompt.template, turns, honour_special=False)
        needed = len(ids) + pictures * (manifest.vision.num_tokens - 1) + self.max_tokens
        holds = self.context_length or manifest.language.default_context_length
        if needed > holds:
            raise RecordError(
                TOO_LONG,
                f"prompt and answer may have {needed} tokens together, and the context holds {holds}; "
                "--context asks for another.",
            )


def _file(question: Question) -> Path | None:
    """Of its picture, which may change by itself; what stands in a table changes with it."""
    return question.image if isinstance(question.image, Path) else None


def _known(question: Question) -> str:
    return question.image.sha256 if isinstance(question.image, TablePicture) else str(question.image)
