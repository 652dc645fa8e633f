"""Files that a set's judge or server takes, in the form of upstream's converters.

What they take is said by docs/sources/measuring.md#files-for-judges.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tinyllava_edge.atomic_files import check_output, output_file
from tinyllava_edge.errors import UsageError

from .mmmu import read_choice
from .question import Question
from .rules import gqa_spelling
from .vqa import normalised_textvqa

Pair = tuple[Question, str]


def _vqav2(pairs: Sequence[Pair]) -> Any:
    return [{"question_id": question.id, "answer": normalised_textvqa(text)} for question, text in pairs]


def _gqa(pairs: Sequence[Pair]) -> Any:
    return [{"questionId": question.id, "prediction": gqa_spelling(text)} for question, text in pairs]


def _mmvet(pairs: Sequence[Pair]) -> Any:
    return {f"v1_{question.id}": text for question, text in pairs}


def _mmmu(pairs: Sequence[Pair]) -> Any:
    """Of several choices the letter, and "" where the tool would draw one."""
    return {
        question.id: read_choice(text, question.options) if question.options else text
        for question, text in pairs
    }


def _llava_wild(pairs: Sequence[Pair]) -> Any:
    return [
        {"question_id": question.id, "prompt": question.prompt or question.text, "text": text, "metadata": {}}
        | {"answer_id": f"{place}", "model_id": "tinyllava-edge"}
        for place, (question, text) in enumerate(pairs)
    ]


HANDED: dict[str, Callable[[Sequence[Pair]], Any]] = {
    "gqa": _gqa,
    "vqav2": _vqav2,
    "mmmu": _mmmu,
    "mmvet": _mmvet,
    "llava-wild": _llava_wild,
}
_PREFIXES = ("v1_", "validation_", "dev_", "test_")  # of ids of MM-Vet and MMMU
_BY_LINE = ("llava-wild",)  # a JSON object a line; the others are one value


def check_handed(path: Path, benchmark: str | None, *, force: bool) -> None:
    """Refuse a set that nobody else scores by a file of its own, and a file that may not be written.

    Raises:
        OutputExistsError: it is there, and `force` is not given, or it is another file.
        UsageError: the set is none of `HANDED`.
    """
    if benchmark not in HANDED:
        raise UsageError(
            f"--submission: no judge or server takes a file of {benchmark or 'own questions'}; there are "
            f"those of {', '.join(HANDED)}. --answers writes upstream's answer files of every set."
        )
    check_output(path, force=force, mark=handed_mark)


def write_handed(path: Path, benchmark: str, pairs: Sequence[Pair], *, force: bool) -> None:
    """Write the file of a set, each question with its answer; "" where there is none.

    Raises:
        OutputExistsError: it is there, and `force` is not given.
    """
    value = HANDED[benchmark](pairs)
    lines = value if benchmark in _BY_LINE else [value]
    with output_file(path, force=force, mark=handed_mark) as work:
        work.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def handed_mark(path: Path) -> str:
    """Whether a file has the form of one of `HANDED`: see `atomic_files.Mark`."""
    text = path.read_text(encoding="utf-8")
    try:
        first = json.loads(text.split("\n", 1)[0] or "null")
    except ValueError:
        return "is no file for a judge or a server"
    first = first[0] if isinstance(first, list) and first else first
    keys = set(first) if isinstance(first, dict) else set()
    ours = keys and (
        keys in ({"question_id", "answer"}, {"questionId", "prediction"})
        or {"question_id", "text", "answer_id"} <= keys
        or all(isinstance(first[key], str) and key.startswith(_PREFIXES) for key in keys)
    )
    return "" if ours else "is no file for a judge or a server"
