"""Released checkpoints, from download to score: what `make hub-check` runs where there is a network.

Each is exported, held against torch, and scored on POPE and TextVQA where their files are given; one that
fails does not stop the others. The report is a directory with report.json, report.md and a file for each.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tinyllava_edge.atomic_files import write_json
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.checkpoint.names import CheckpointPlace, fetch_checkpoint, fetch_sources
from tinyllava_edge.errors import DataError, TinyLlavaEdgeError
from tinyllava_edge.export.options import ExportOptions
from tinyllava_edge.runtimes.engine import open_bundle
from tinyllava_edge.runtimes.registry import DEFAULT_RUNTIME, choose_runtime

from .pope import read_pope, score_pope
from .published import Released
from .questions import Question
from .scores import ask_all
from .textvqa import read_textvqa, score_textvqa

Record = dict[str, Any]
MAX_TOKENS = 128  # upstream's, for POPE and TextVQA


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """How every checkpoint is treated.

    Attributes:
        hub_root: a directory with `owner/name/` in the place of the hub; nothing is downloaded then.
        sources: where files are that a checkpoint only names; "hub" downloads them.
        eval_data: folder with `pope/` and `textvqa/`, either may be missing.
        limit: pictures of each benchmark; 0 takes all of them.
    """

    vision: tuple[str, ...] = ("fp32",)
    language: tuple[str, ...] = ("f16", "q8_0")
    hub_root: Path | None = None
    sources: Path | None = Path("hub")
    eval_data: Path | None = None
    limit: int = 0
    allow_pickle: bool = False


def check_released(
    folder: Path, released: Sequence[Released], options: CheckOptions, on_step: Callable[[str], None]
) -> Record:
    """Check every checkpoint and write the report into a folder; it has a record for each."""
    records = []
    for model in released:
        record: Record = {"repository": model.repository, "note": model.note, "error": ""}
        try:
            record |= _check(folder, model, options, on_step)
        except (TinyLlavaEdgeError, OSError) as error:
            record["error"] = " ".join(str(error).split())
        write_json(folder / f"{model.repository.replace('/', '--')}.json", record)
        records.append(record)
    shown = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(options).items()}
    report = {"options": shown, "checkpoints": records}
    write_json(folder / "report.json", report)
    (folder / "report.md").write_text("\n".join(markdown_lines(report)) + "\n", encoding="utf-8")
    return report


def passed(record: Mapping[str, Any]) -> bool:
    """Whether a checkpoint was exported and is equal to torch; scores are told, not judged."""
    return not record["error"] and bool(record["verify"]["passed"])


def _check(folder: Path, model: Released, options: CheckOptions, on_step: Callable[[str], None]) -> Record:
    from tinyllava_edge.export.pipeline import export_bundle

    on_step(f"fetch {model.repository}")
    place = _place(model.repository, options)
    sources, notes = fetch_sources(options.sources, place.path)
    on_step(f"export {model.repository}")
    out = folder / "bundles" / model.repository.replace("/", "--")
    manifest = export_bundle(
        place.path,
        out,
        ExportOptions(
            vision=options.vision,
            language=options.language,
            sources=sources,
            allow_pickle=options.allow_pickle,
            repository=place.repository,
            commit=place.commit,
        ),
    )
    record: Record = {
        "commit": place.commit or "stand-in directory",
        "notes": notes,
        "parameters": {name: part.parameters for name, part in manifest.parts.items()},
        "bytes": {v.name: Bundle.open(out).variant_bytes(v) for v in manifest.variants},
    }
    on_step(f"verify {model.repository}")
    record["verify"] = _verify(out, place.path, sources, options)
    on_step(f"score {model.repository}")
    published = {"pope": model.pope, "textvqa": model.textvqa}
    record["scores"] = {}
    for name, result in _scores(out, options):
        difference = None if published[name] is None else result["score"] - published[name]
        record["scores"][name] = result | {"published": published[name], "difference": difference}
    return record


def _place(repository: str, options: CheckOptions) -> CheckpointPlace:
    if options.hub_root is None:
        return fetch_checkpoint(repository, allow_pickle=options.allow_pickle)
    path = options.hub_root / repository.partition("@")[0]
    if not path.is_dir():
        raise DataError(f"{path}: no such directory in the stand-in for the hub.")
    return CheckpointPlace(path=path)


def _verify(bundle: Path, checkpoint: Path, sources: Path | None, options: CheckOptions) -> Record:
    from tinyllava_edge.benchmarks.verify.climb import chosen_variants, climb, open_reference
    from tinyllava_edge.benchmarks.verify.ladder import Ladder

    opened = Bundle.open(bundle)
    reference = open_reference(
        opened, checkpoint, sources=sources, num_tokens=48, allow_pickle=options.allow_pickle
    )
    report = climb(
        Ladder(
            bundle=opened,
            reference=reference,
            vision=chosen_variants(opened, "vision", ()),
            language=chosen_variants(opened, "language", ()),
            runtime=choose_runtime(DEFAULT_RUNTIME),
            num_pictures=4,
        )
    )
    return report.to_json() | {"verdict": report.verdict}


def _scores(bundle: Path, options: CheckOptions) -> Iterator[tuple[str, Record]]:
    """The benchmarks whose files are there, scored with the most compact language model."""
    if options.eval_data is None:
        return
    language = options.language[-1]
    if (options.eval_data / "pope").is_dir():
        asked = read_pope(options.eval_data / "pope")
        chosen = sampled(asked, options.limit)
        answers = _ask(bundle, language, [asked[i] for i in chosen])
        result = score_pope([asked[i] for i in chosen], answers)
        yield "pope", result | _amount(len(chosen), len(asked), language)
    if (options.eval_data / "textvqa").is_dir():
        asked, people = read_textvqa(options.eval_data / "textvqa")
        chosen = sampled(asked, options.limit)
        answers = _ask(bundle, language, [asked[i] for i in chosen])
        result = score_textvqa([people[i] for i in chosen], answers)
        yield "textvqa", result | _amount(len(chosen), len(asked), language)


def sampled(questions: Sequence[Question], limit: int) -> list[int]:
    """Positions of all questions about `limit` pictures, the same ones each time; of all for 0."""
    pictures = sorted({str(question.image) for question in questions})
    if 0 < limit < len(pictures):
        pictures = random.Random(0).sample(pictures, limit)
    kept = set(pictures)
    order = [index for index, question in enumerate(questions) if str(question.image) in kept]
    return sorted(order, key=lambda index: str(questions[index].image))  # pictures stay together


def _ask(bundle: Path, language: str, questions: Sequence[Question]) -> list[str]:
    missing = [str(q.image) for q in questions if q.image is not None and not q.image.is_file()]
    if missing:
        raise DataError(f"{len(missing)} pictures are missing, the first is {missing[0]}.")
    with open_bundle(bundle, language=language) as model:
        return ask_all(model, questions, max_tokens=MAX_TOKENS)


def _amount(asked: int, of: int, language: str) -> Record:
    return {"language": language, "asked": asked, "of": of, "subset": asked < of}


def markdown_lines(report: Record) -> Iterator[str]:
    """One row for each checkpoint."""
    yield "# Released checkpoints, exported and checked"
    yield ""
    yield "| checkpoint | commit | against torch | POPE (published) | TextVQA (published) |"
    yield "|---|---|---|---:|---:|"
    for record in report["checkpoints"]:
        verdict = record["error"] or record["verify"]["verdict"]
        scores = [_score(record.get("scores", {}).get(name)) for name in ("pope", "textvqa")]
        yield f"| {' | '.join([record['repository'], record.get('commit', '')[:12], verdict, *scores])} |"


def _score(result: Record | None) -> str:
    if result is None:
        return "not scored"
    found = f"{result['score']:.1f}{' of a subset' if result['subset'] else ''}"
    if result["published"] is None:
        return f"{found} (none)"
    return f"{found} ({result['published']:.1f}, {result['difference']:+.1f})"
