"""Cards: all of it from files, hostile texts shown and nowhere obeyed, what is missing said. CPU."""

import html
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt
from typer.testing import CliRunner

from tests.core.small_bundle import change_manifest, write_small_bundle
from tinyllava_edge.benchmarks.card import source
from tinyllava_edge.benchmarks.card.card import Asked, build_card
from tinyllava_edge.benchmarks.card.cli import card_mark
from tinyllava_edge.benchmarks.card.document import Code, Document, Rows, Section, markdown_of, page_of
from tinyllava_edge.benchmarks.card.source import _is_its_own, licence_of
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.checkpoint.names import bundle_path
from tinyllava_edge.cli import app
from tinyllava_edge.errors import BundleError, DataError, TinyLlavaEdgeError, UsageError
from tinyllava_edge.printable import printable

ROOT = Path(__file__).parents[3]
REPORT = ROOT / "benchmarks" / "results" / "nano"
HOSTILE = (
    "<script>alert(1)</script>",
    "a | b \\| c",
    "`code` ``` [x](javascript:alert(1)) ![y](https://evil.example/t.png)",
    "line\n# heading\n---\nbase_model: evil/evil",
    "\x1b[2J\u202egnp.exe &lt;img src=x onerror=alert(1)&gt; \"'",
    "https://evil.example www.evil.example @someone #1 $x$ ~~s~~ **b** _i_",
)


class _Seen(HTMLParser):
    """What a browser would make of a page: its elements, and the text between them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


def front_of(markdown: str) -> dict[str, Any]:
    return dict(yaml.safe_load(markdown.split("---\n")[1]))


def card_of(bundle: Path, **asked: Any) -> Document:
    return build_card(Bundle.open(bundle), Asked(name="mine", **asked))[0]


def test_nanos_committed_card_is_the_one_that_its_files_make(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`make nano-card` writes it. A result of verify on this machine would be on it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked = Asked(name="nano", bench=[REPORT])
    document, _ = build_card(Bundle.open(bundle_path("nano")), asked)
    assert markdown_of(document) == (ROOT / "docs" / "nano_card.md").read_text(encoding="utf-8")
    assert document.missing == []


def test_every_figure_is_the_files_own() -> None:
    bundle, text = Bundle.open(bundle_path("nano")), markdown_of(card_of(bundle_path("nano"), bench=[REPORT]))
    for variant in bundle.manifest.variants:
        row = f"| {variant.part} | `{variant.name}` | {variant.target} | {bundle.variant_bytes(variant):,} |"
        assert f"{row} {variant.status} |" in text
    parity = json.loads((bundle.root / "parity" / "export.json").read_text())["vision"]["fp16"]
    assert f"| `connector` | `snr_db` | {parity['onnxruntime']['snr_db']:.3g} | &gt;= 40 |" in text
    assert f"| `connector` | `rounded_snr_db` | {parity['rounded']['snr_db']:.3g} | &gt;= 40 |" in text
    assert f"| `tower` | `max_activation` | {parity['largest']:.3g} | &lt;= 32752 |" in text
    assert f"visual tokens of a picture | {bundle.manifest.vision.num_tokens} |" in text
    report = json.loads((REPORT / "report.json").read_text())
    for cell in report["cells"][:-1]:
        assert f"| `{cell['name']}` | {cell['size_bytes'] / 1e6:.1f} |" in text
    assert "Measured on another bundle of the same checkpoint" in text
    assert front_of(text) == {
        "license": "apache-2.0",
        "library_name": "tinyllava-edge",
        "pipeline_tag": "image-text-to-text",
        "tags": ["tinyllava", "vision-language-model", "edge", "gguf", "onnx"],
    }


def test_what_no_file_says_is_said_to_be_unknown(tmp_path: Path) -> None:
    document = card_of(write_small_bundle(tmp_path / "b"))  # says that it came from nano; its hash does not
    assert front_of(markdown_of(document))["license"] == "unknown"
    assert [line.split(":")[0] for line in document.missing] == [
        "The checkpoint was not at hand",
        "No figures of parity",
        "No figures of speed",
        "No figures of accuracy",
    ]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_text_from_a_file_is_text_in_both_forms(text: str) -> None:
    for piece in (Code(text), text):
        rows = Rows([{"a": piece, "b": "x"}])
        document = Document(
            title=text,
            metadata={"license": text, "tags": [text]},
            sections=[Section("s", [piece, ["and ", piece]], [rows])],
            missing=[],
        )
        seen = _Seen(page_of(document))
        assert not seen.elements & {"script", "img", "a", "iframe", "svg"}
        assert not {name for name in seen.attributes if name.startswith("on")} | seen.attributes & {
            "href",
            "src",
        }
        markdown = markdown_of(document)
        assert front_of(markdown) == {"license": text, "tags": [text]}
        body = markdown.split("---\n", 2)[2]
        assert "\x1b" not in body
        assert "\u202e" not in body
        bare = re.sub(r"`[^`\n]+`", "", body)  # what the hub makes links and names of where no markup is
        assert not re.search(r"://|www\.|[$@]", bare), bare
        shown = _Seen(MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(body))
        assert shown.elements <= {"h1", "h2", "p", "code", "table", "thead", "tbody", "tr", "th", "td"}
        assert shown.text.count(printable(text, line_ends=True)) == 4
        assert seen.text.count(printable(text, line_ends=True)) == 7
        assert not re.search(r"^# heading|^base_model", body, re.MULTILINE)


def test_names_of_a_hostile_bundle_reach_a_card_as_text(tmp_path: Path) -> None:
    bundle = write_small_bundle(tmp_path / "b")

    def change(manifest: dict[str, Any]) -> None:
        manifest["parts"]["vision_tower"]["architecture"] = HOSTILE[0]
        manifest["source"] |= {
            "name": HOSTILE[3],
            "repository": "evil/evil\nlicense: mit",
            "layout": HOSTILE[1],
        }
        manifest["versions"] = {HOSTILE[2]: HOSTILE[4]}
        manifest["prompt"]["template_reason"] = HOSTILE[5]

    change_manifest(bundle, change)
    document = card_of(bundle)
    markdown, page = markdown_of(document), page_of(document)
    assert front_of(markdown).keys() == {"license", "library_name", "pipeline_tag", "tags"}
    assert "<script" not in markdown.replace(f"`{HOSTILE[0]}`", "") + page
    assert html.escape(HOSTILE[0]) in page
    assert len(re.findall(r"^# ", markdown, re.MULTILINE)) == 1


def test_where_the_checkpoint_was_is_on_no_card_and_push_says_that_the_manifest_has_it(
    tmp_path: Path,
) -> None:
    bundle = write_small_bundle(tmp_path / "b")
    change_manifest(bundle, lambda manifest: manifest["source"].update(name="/home/me/secret/model"))
    assert "/home/me" not in markdown_of(card_of(bundle)) + page_of(card_of(bundle))
    said = CliRunner().invoke(app, ["push", str(bundle), "a/b", "--dry-run"]).stderr
    assert "tells everybody where the checkpoint was: /home/me/secret/model" in said


def test_a_notice_is_a_file_of_the_checkpoint_or_of_the_hubs_cache(tmp_path: Path) -> None:
    folder, blobs = tmp_path / "models" / "snapshots" / "abc", tmp_path / "models" / "blobs"
    folder.mkdir(parents=True)
    blobs.mkdir()
    for name, place in {"LICENSE": folder, "cafe": blobs, "secret": tmp_path}.items():
        (place / name).write_text(name)
    (folder / "NOTICE").symlink_to(blobs / "cafe")
    (folder / "COPYING").symlink_to(tmp_path / "secret")
    assert [_is_its_own(folder / name) for name in ("LICENSE", "NOTICE", "COPYING")] == [True, True, False]


@pytest.mark.parametrize(
    ("front", "licence"),
    [
        ("---\nlicense: apache-2.0\n---\n# x", "apache-2.0"),
        ("---\nlanguage: en\nlicense: 'mit' # as upstream\n---", "mit"),
        ("---\r\nlicense: mit\r\n---\r\n", "mit"),
        ("---\nlicense: [mit]\n---", ""),
        ("---\nlicense: mit <b>\n---", ""),
        ("---\nmodel:\n  license: mit\n---", ""),
        ("# x\nlicense: mit", ""),
        ("x\n---\nlicense: mit\n---", ""),
        ("", ""),
    ],
)
def test_a_licence_is_what_the_readme_states_and_nothing_else(
    tmp_path: Path, front: str, licence: str
) -> None:
    (tmp_path / "README.md").write_bytes(front.encode())
    assert licence_of(tmp_path) == licence


def test_a_checkpoint_that_it_did_not_come_from_is_refused(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(ROOT / "tinyllava_edge/nano/checkpoint", tmp_path / "ck"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config, indent=3))
    with pytest.raises(UsageError, match="the bundle came from f1ffa7dde0ec"):
        card_of(bundle_path("nano"), checkpoint=str(copy))


def test_the_ladder_of_verify_is_on_the_card_with_what_failed(tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(bundle_path("nano"), tmp_path / "b"))
    check = {"metric": "nmse", "value": 1e-3, "gate": {"metric": "nmse", "kind": "max", "limit": 1e-4}}
    verified: dict[str, Any] = {
        "manifest_sha256": Bundle.open(bundle).manifest_sha256,
        "passed": False,
        "verdict": "differs <b>first</b> at logits",
        "reference": "torch float32",
        "stages": [
            {"stage": "logits", "variant": "f16", "status": "FAIL", "checks": [{**check, "passed": False}]}
        ],
    }
    path = bundle / "parity" / "onnxruntime+llamacpp.json"
    path.write_text(json.dumps(verified))
    text = markdown_of(card_of(bundle))
    assert "| `f16` | `logits` | `nmse` | 0.001 | &lt;= 0.0001: NOT PASSED |" in text
    assert "`differs <b>first</b> at logits`" in text
    path.write_text(
        json.dumps({**verified, "stages": [{**verified["stages"][0], "checks": [{"metric": 1}]}]})
    )
    with pytest.raises(BundleError, match="parity/onnxruntime"):
        card_of(bundle)


@pytest.mark.parametrize("number", ["1e999", "1" * 400, "NaN", "true", "[]"])
def test_a_figure_that_is_none_ends_in_a_card_or_one_line(tmp_path: Path, number: str) -> None:
    bundle = Path(shutil.copytree(bundle_path("nano"), tmp_path / "b"))
    path = bundle / "parity" / "export.json"
    text = re.sub(r'"(snr_db|largest|lowest_snr_db)": [\d.]+', rf'"\1": {number}', path.read_text())
    path.write_text(text)
    assert "79.6" not in markdown_of(card_of(bundle))
    sha = Bundle.open(bundle).manifest_sha256
    check = f'{{"metric": "nmse", "value": {number}, "gate": {{"kind": "max", "limit": {number}}}}}'
    stage = f'{{"stage": "logits", "variant": "f16", "checks": [{check}]}}'
    verified = f'{{"manifest_sha256": "{sha}", "passed": true, "stages": [{stage}]}}'
    (bundle / "parity" / "onnxruntime+llamacpp.json").write_text(verified)
    try:
        card_of(bundle)
    except BundleError as error:
        assert "parity/onnxruntime" in str(error)  # noqa: PT017


def test_a_report_of_another_model_is_refused() -> None:
    with pytest.raises(UsageError, match="neither this bundle nor another one of its checkpoint"):
        card_of(bundle_path("nano"), bench=[ROOT / "benchmarks" / "results" / "smollm2-135m"])


def _lacking(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda record: record["cells"][0]["warm"].pop(key)


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.pop("control_passed"),
        lambda record: record["cells"][0].pop("size_bytes"),
        lambda record: record["cells"][0].update(parity=[1]),
        lambda record: record["machine"].update(gpus=None),
        _lacking("token_ms"),
    ],
)
def test_a_report_that_is_not_whole_is_one_line(tmp_path: Path, change: Callable[[Any], None]) -> None:
    record = json.loads((REPORT / "report.json").read_text())
    change(record)
    (tmp_path / "report.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match="Measure again"):
        card_of(bundle_path("nano"), bench=[tmp_path])


def test_scores_of_eval_are_on_the_card(tmp_path: Path) -> None:
    sha = Bundle.open(bundle_path("nano")).manifest_sha256
    row = {
        "name": "fp16 + f16",
        "accuracy": 0.5,
        "ci95": [0.25, 0.75],
        "blind_accuracy": 0.125,
        "questions": 8,
    }
    line = {"manifest_sha256": sha, "benchmark": None, "blind": False, "variants": [{**row, "rule": "exact"}]}
    file = tmp_path / "eval.json"
    file.write_text(f"{json.dumps(line)}\n")
    text = markdown_of(card_of(bundle_path("nano"), evals=[file]))
    assert "| `fp16 + f16` | a file | 8 | `exact` | 0.500 \\[0.250, 0.750\\] | 0.125 |" in text
    for wrong, error in (
        ({**line, "manifest_sha256": "0" * 64}, UsageError),
        ({**line, "variants": [{"name": 1}]}, DataError),
        ({"schema": 1}, DataError),
    ):
        file.write_text(json.dumps(wrong))
        with pytest.raises(error):
            card_of(bundle_path("nano"), evals=[file])
    for text in ("", "[" * 5000, "{" * 5000):
        file.write_text(text)
        with pytest.raises(TinyLlavaEdgeError):
            card_of(bundle_path("nano"), evals=[file])


def test_the_command_writes_both_forms_and_replaces_only_its_own(tmp_path: Path) -> None:
    out = tmp_path / "card"
    words = ["card", "nano", "-o", str(out)]
    result = CliRunner().invoke(app, [*words, "--json"])
    assert (result.exit_code, result.stderr) == (0, "")
    assert json.loads(result.stdout)["output"] == str(out)
    assert sorted(path.name for path in out.iterdir()) == ["card.html", "card.md"]
    assert card_mark(out) == ""
    assert "Give --force" in str(CliRunner().invoke(app, words).exception)
    assert CliRunner().invoke(app, [*words, "--force"]).exit_code == 0
    (out / "mine.txt").touch()
    assert "holds mine.txt" in str(CliRunner().invoke(app, [*words, "--force"]).exception)


def test_each_of_two_towers_has_its_licence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"openai/clip": "mit", "facebook/dinov2": ""}
    for name, licence in names.items():
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "README.md").write_text(f"---\nlicense: {licence}\n---\n" if licence else "")
    monkeypatch.setattr(source, "cached_snapshot", lambda name: tmp_path / name)
    config = dict(zip(("vision_model_name_or_path", "vision_model_name_or_path2"), names, strict=True))
    found = source._origin(SimpleNamespace(path=tmp_path, factory_config=config))  # type: ignore[arg-type]
    assert found.licences == {"openai/clip, facebook/dinov2": "mit, unknown"}
