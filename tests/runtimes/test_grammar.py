"""JSON schemas and grammars: answers fit them, and a hostile one is an error and nothing worse."""

import gc
import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.runtimes.bundles import write_bundle
from tinyllava_edge.cli import app
from tinyllava_edge.errors import GrammarError, TinyLlavaEdgeError
from tinyllava_edge.runtimes import llamacpp_grammar
from tinyllava_edge.runtimes.json_schema import read_schema
from tinyllava_edge.runtimes.model import Model, open_bundle
from tinyllava_edge.sampling import Sampling

PICTURE = "docs/pictures/emoji.webp"
PERSON = {
    "title": "a person",
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5, "description": "as it is said"},
        "title": {"enum": ["a\\b", 'c"d', "\u00e9\U0001f600", 5]},
        "tags": {"type": "array", "items": {"$ref": "#/$defs/string"}, "minItems": 1, "maxItems": 2},
        "code": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]+$", "default": "AB-1"},
        "left": {"anyOf": [{"$ref": "#/$defs/string"}, {"type": "null"}]},
    },
    "required": ["name", "title", "tags", "code", "left"],
    "$defs": {"string": {"type": "boolean"}},
}


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with open_bundle("nano", threads=1) as opened:
        yield opened


def test_a_grammar_is_an_answer_of_the_models_own_where_that_fits(model: Model) -> None:
    free = model.ask("What is this?", PICTURE)
    assert model.ask("What is this?", PICTURE, grammar=f'root ::= "no" | "{free}" | "yes"') == free
    stream = model.answer([("What is this?", None)], PICTURE, grammar='root ::= "yes" | "no"', logprobs=0)
    assert "".join(stream) in ("yes", "no")
    assert stream.finish == "stop_id"


def test_json_fits_its_schema_at_any_temperature(model: Model) -> None:
    for seed in range(8):
        stream = model.answer([("Who?", None)], sampling=_hot(seed), json_schema=PERSON, max_tokens=400)
        text = "".join(stream)
        if stream.finish == "max_tokens":  # many digits
            continue
        said = json.loads(text)
        assert list(said) == PERSON["required"]
        assert len(said["name"]) <= 5
        assert said["title"] in PERSON["properties"]["title"]["enum"]  # type: ignore[index]
        assert len(said["tags"]) in (1, 2)
        assert all(isinstance(tag, bool) for tag in said["tags"])
        assert re.fullmatch("[A-Z]{2}-[0-9]+", said["code"])
        assert said["left"] in (True, False, None)
        break
    else:
        pytest.fail("no answer was whole")


def _hot(seed: int) -> Sampling:
    return Sampling(temperature=1, seed=seed)


def test_text_of_a_special_token_is_written_out_and_strings_hold_no_line_ends(model: Model) -> None:
    schema = {"type": "string", "minLength": 40, "maxLength": 40}
    for seed in range(3):
        stream = model.answer([("Say", None)], sampling=_hot(seed), json_schema=schema)
        assert len(json.loads("".join(stream))) == 40
        assert not set(stream.ids) & model.tokenizer.special_ids


def test_an_answer_that_the_limit_cuts_says_so(model: Model) -> None:
    stream = model.answer([("Who?", None)], json_schema=json.dumps(PERSON), max_tokens=3)
    list(stream)
    assert stream.finish == "max_tokens"


def test_every_language_backend_is_held_to_it() -> None:
    with open_bundle("nano", runtime="scripted") as scripted:
        assert scripted.ask("What?", grammar='root ::= "yes" | "no"') in ("yes", "no")


def test_a_bundle_whose_vocabulary_does_not_end_an_answer_says_so(tmp_path: Any) -> None:
    with (
        open_bundle(write_bundle(tmp_path / "b"), runtime="scripted") as scripted,
        pytest.raises(GrammarError, match=r"knows none of the ids \[2\] as an answer's end|no token"),
    ):
        scripted.ask("What?", grammar='root ::= "yes"')


@pytest.mark.parametrize(
    ("grammar", "said"),
    [
        ("", "empty"),
        ('root ::= "a', "cannot read the grammar: unexpected end of input"),
        ("root ::= foo", "Undefined rule identifier 'foo'"),
        ('x ::= "a"', "Undefined rule identifier 'root'"),
        ('root ::= root "a" | "b"', "left recursion"),
        ("root ::= " + "(" * 50_000 + '"a"' + ")" * 50_000, "dies of it"),
        ('root ::= "a"{1000000000}', "cannot read"),
        ("root ::= [z-a]", "no token of this vocabulary"),
        ("root ::= " + '"a" ' * 100_000, "200,000 at most"),
        ('root ::= "\udcff"', "not valid Unicode"),
        (5, "found int"),
    ],
)
def test_a_hostile_grammar_is_one_line(model: Model, grammar: Any, said: str) -> None:
    with pytest.raises(GrammarError, match=re.escape(said)) as caught:
        model.answer([("What?", None)], grammar=grammar)
    assert "\n" not in str(caught.value)
    assert model.ask("What?", max_tokens=1) is not None


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ("{", "not JSON"),
        ("[]", "must be an object"),
        ('{"items":' * 5000 + "{}" + "}" * 5000, "recursion"),
        ({"enum": ["\ud800"]}, "surrogates"),
        ({"const": float("inf")}, "not JSON compliant"),
        ({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "left recursion"),
        ({"a": object()}, "not JSON"),
    ],
)
def test_a_hostile_schema_is_one_line(model: Model, schema: Any, said: str) -> None:
    with pytest.raises(GrammarError, match=said):
        model.answer([("What?", None)], json_schema=schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "minimum": 3},
        {"type": "string", "pattern": "^.*$"},
        {"type": "string", "pattern": "^[^a]$"},
        {"type": "string", "pattern": "^((a$"},
        {"type": "string", "pattern": "^a{1,1000000}$"},
        {"type": "array", "items": {}, "maxItems": 10**9},
        {"type": "string", "minLength": 5, "maxLength": 2},
        {"type": "string", "minLength": True},
        {"type": "object", "properties": {"a": {"not": {}}}},
        {"type": "object", "properties": {}, "required": ["a"]},
        {"type": "object", "properties": {"a": True}, "required": [["a"]]},
        {"type": "string", "properties": {}},
        {"anyOf": []},
        {"anyOf": [{"type": "null"}], "type": "string"},
        {"allOf": [{"type": "string"}]},
        {"$ref": "https://example.org/schema"},
        {"$ref": "#/$defs/none"},
        {"type": "blob"},
        {"type": {}},
        {"enum": []},
        {"properties": 5},
        {"$defs": []},
    ],
)
def test_what_an_answer_could_not_be_held_to_is_refused(schema: Any) -> None:
    with pytest.raises(GrammarError, match="JSON schema"):
        read_schema(schema)


def test_a_schema_and_a_grammar_are_not_both_given(model: Model) -> None:
    with pytest.raises(GrammarError, match="Give one of them"):
        model.ask("What?", json_schema={}, grammar='root ::= "a"')


def test_a_text_is_checked_once_and_its_memory_freed_once(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    vocabulary = model._grammars._vocabulary
    assert vocabulary is not None
    library = vocabulary.library
    free, freed = library.llama_sampler_free, Counter[int]()

    def count(sampler: Any) -> None:
        freed.update([1])
        free(sampler)

    monkeypatch.setattr(library, "llama_sampler_free", count)
    monkeypatch.setattr(llamacpp_grammar, "load_library", lambda: pytest.fail("loaded again"))
    for _ in range(20):
        assert model.ask("What?", grammar='root ::= "yes" | "no"') in ("yes", "no")
    stream = model.answer([("What?", None)], grammar='root ::= "yes" | "no"')
    stream.close()
    del stream
    gc.collect()
    assert freed.total() == 21


def test_the_commands_options_are_the_models_settings(tmp_path: Any) -> None:
    grammar, schema = tmp_path / "yes_no.gbnf", tmp_path / "schema.json"
    grammar.write_text('root ::= "yes" | "no"')
    schema.write_text('{"const": "no"}')
    penalties = ["--repetition-penalty", "1.1", "--frequency-penalty", "0.1", "--presence-penalty", "0.1"]
    for options, answers in (
        (["--grammar", str(grammar), *penalties, "--system", "Be brief."], ("yes", "no")),
        (["--json-schema", str(schema), "--stop", "x", "--stop", "y"], ('"no"',)),
        (["--json-schema", '{"const": 5}'], ("5",)),
    ):
        result = CliRunner().invoke(app, ["run", "nano", PICTURE, "?", "--json", "--logprobs", "2", *options])
        said = json.loads(result.stdout)
        assert said["answer"] in answers
        assert [len(entry["top"]) for entry in said["logprobs"]] == [2] * said["timings"]["generated_tokens"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--logprobs", "1"], "Add --json"),
        (["--grammar", "absent.gbnf"], "absent.gbnf: cannot be read: no such file"),
        (["--json-schema", "{"], "not JSON"),
        (["--presence-penalty", "3"], "presence_penalty is 3.0; it must be -2 to 2"),
    ],
)
def test_an_option_that_says_nothing_is_one_line(options: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["run", "nano", "?", *options])
    assert isinstance(result.exception, TinyLlavaEdgeError)
    assert said in str(result.exception)
