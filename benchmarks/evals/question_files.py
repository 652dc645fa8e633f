"""Files of questions or of references, in any of the field's forms -> one record for each question.

A form is told by what is in a file, not by its name: docs/sources/measuring.md#question-files. All of them
become records with the keys of LLaVA's and of plain lists, which `questions` and `references` read.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyllava_edge.checkpoint.files import once_each
from tinyllava_edge.errors import DataError
from tinyllava_edge.user_files import read_user_text

from .mmmu import category_of
from .tables import COLUMNS, read_mme_text, read_table

Raw = Mapping[str, Any] | DataError  # a record, or why it is none


@dataclass(frozen=True, kw_only=True)
class QuestionFile:
    """What a file holds.

    Attributes:
        records: in the order of the file.
        rule: name of the rule that scores files of this form; "" where the form does not say.
    """

    records: Sequence[Raw]
    rule: str = ""


def read_question_file(path: Path) -> QuestionFile:
    """Read JSON (a list, one record, or a public set's own object), a record a line, MME's text or a table.

    Raises:
        DataError: the file is of another form, or holds nothing.
    """
    text = read_user_text(path, error=DataError).removeprefix("\ufeff")
    first = text.lstrip()[:1]
    if not first:
        raise DataError(f"{path}: the file is empty; expected at least one record.")
    if first in "{[":
        found = _of_json(_parsed(path, text), path)
    elif "\t" in text.lstrip().split("\n")[0]:
        header = text.lstrip().split("\n")[0].split("\t")
        named = COLUMNS & {name.strip() for name in header}
        found = QuestionFile(**(read_table(path, text) if named else read_mme_text(path, text)))
    else:
        raise DataError(
            f"{path}: neither JSON nor one record a line, nor MME's text or a table (columns apart by tabs)."
        )
    if not found.records:
        raise DataError(f"{path}: the list is empty; expected at least one record.")
    return found


def _parsed(path: Path, text: str) -> Any:
    """A JSON value; of one record a line, the list of them: a line that is none is its own fault."""
    try:
        return json.loads(text, object_pairs_hook=once_each)
    except (ValueError, RecursionError) as error:
        fault: Exception = error
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    records = [_line(line, number) for number, line in lines]
    if not any(isinstance(record, dict) for record in records):
        raise DataError(f"{path}: neither JSON nor one record a line ({fault}).")
    return records


def _line(line: str, number: int) -> Any:
    try:
        return json.loads(line.removeprefix("\ufeff"), object_pairs_hook=once_each)
    except (ValueError, RecursionError) as error:
        return DataError(f"line {number} is not JSON ({error}). Is the file whole?")


def _of_json(value: Any, path: Path) -> QuestionFile:
    if isinstance(value, dict):
        for key, read in (("questions", _vqa), ("annotations", _vqa), ("data", _textvqa)):
            if isinstance(value.get(key), list):
                return read(value, value[key], path)
        if value and all(isinstance(record, dict) for record in value.values()):
            return _by_id(value)
        value = [value]
    if not isinstance(value, list):
        raise DataError(f"{path}: expected a JSON list of records, found {type(value).__name__}.")
    if value and all(
        isinstance(record, dict) and {"question_type", "prompt"} <= set(record) for record in value
    ):
        return _mmmu(value)
    return QuestionFile(records=[_object(record) for record in value])


def _object(record: Any) -> Raw:
    if isinstance(record, Mapping | DataError):
        return record
    return DataError(f"expected an object, found {type(record).__name__}.")


def _each(
    records: Iterable[Any], change: Callable[[Mapping[str, Any]], Mapping[str, Any]], needs: str
) -> list[Raw]:
    """Records in another form; one that lacks a key is its own fault."""
    found: list[Raw] = []
    for record in map(_object, records):
        if isinstance(record, DataError):
            found.append(record)
            continue
        try:
            found.append({**record, **change(record)})
        except (KeyError, TypeError, ValueError, AttributeError, IndexError):
            found.append(DataError(f"expected {needs}, found {', '.join(map(str, record)) or 'nothing'}."))
    return found


def _vqa(whole: Mapping[str, Any], records: Sequence[Any], path: Path) -> QuestionFile:
    """VQAv2's questions, or the annotations beside them."""
    if "annotations" in whole:

        def answers(record: Mapping[str, Any]) -> dict[str, Any]:
            said = [answer["answer"] for answer in record["answers"]]
            return {"answers": said, "id": record["question_id"], "type": record.get("answer_type", "all")}

        return QuestionFile(records=_each(records, answers, "question_id and answers"), rule="vqav2")
    kind = str(whole.get("data_subtype", "val2014")).replace("test-dev", "test")  # whose pictures they are

    def named(record: Mapping[str, Any]) -> dict[str, Any]:
        return {"image": record.get("image", f"COCO_{kind}_{int(record['image_id']):012d}.jpg")}

    return QuestionFile(records=_each(records, named, "image_id, question and question_id"), rule="vqav2")


def _textvqa(whole: Mapping[str, Any], records: Sequence[Any], path: Path) -> QuestionFile:
    def named(record: Mapping[str, Any]) -> dict[str, Any]:
        if not isinstance(record["question"], str):
            raise TypeError
        return {"image": record.get("image", f"{record['image_id']}.jpg")}

    return QuestionFile(records=_each(records, named, "image_id, question and answers"), rule="textvqa")


def _mmmu(records: Sequence[Mapping[str, Any]]) -> QuestionFile:
    """MMMU's questions, as upstream's script takes them; one of several pictures names none."""

    def named(record: Mapping[str, Any]) -> dict[str, Any]:
        is_open = record["question_type"] != "multiple-choice"
        options = {} if is_open else {letter: record["index2ans"][letter] for letter in record["all_choices"]}
        return {"question": record["prompt"], "type": category_of(record["id"]), "options": options}

    return QuestionFile(records=_each(records, named, "id, prompt, all_choices and index2ans"), rule="mmmu")


def _by_id(value: Mapping[str, Any]) -> QuestionFile:
    """GQA's questions, ScienceQA's problems or MMMU's answers: an object with a record under each id."""
    records = [{"question_id": id_, **record} for id_, record in value.items()]
    if all("ground_truth" in record for record in records):
        found = [{**record, "answer": record["ground_truth"], "question": ""} for record in records]
        return QuestionFile(records=found, rule="mmmu")
    if all("choices" in record for record in records):

        def lettered(record: Mapping[str, Any]) -> dict[str, Any]:
            if not 0 <= record["answer"] < len(record["choices"]):
                raise IndexError
            return {"answer": "ABCDE"[record["answer"]], "question": "", "image": None}

        return QuestionFile(
            records=_each(records, lettered, "choices and the answer's place among them"), rule="scienceqa"
        )

    def named(record: Mapping[str, Any]) -> dict[str, Any]:
        return {} if "image" in record else {"image": f"{record['imageId']}.jpg"}

    return QuestionFile(records=_each(records, named, "imageId, question and answer"), rule="gqa")
