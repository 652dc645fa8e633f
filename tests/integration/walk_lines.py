"""A checkpoint line as a user goes: inspect, export, verify, run; then its bundle against upstream."""

import json
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

from tests.integration.checkpoint_lines import Bundled, Errors, Line, measure
from tests.integration.user_commands import Ran, ran
from tinyllava_edge.model.assets import read_assets
from tinyllava_edge.runtimes.model import open_bundle


@dataclass(frozen=True, kw_only=True)
class Walk:
    """What the commands ended with, and how far the bundle is from upstream."""

    codes: dict[str, int]  # of each command, in order
    stopped: str  # what the one said that failed, or nothing
    verdict: str  # of `verify`
    same_answer: bool  # `run` gave the text of upstream's greedy ids
    errors: Errors | None


def walk(line: Line, folder: Path) -> Walk:
    """Export to a folder with f32 and q8_0, and go on until a command fails."""
    bundle = folder / "bundle"
    given = ["--sources", line.checkpoint.sources, "--allow-pickle"]
    path, codes = line.checkpoint.path, dict[str, int]()
    types = ["--vision", "fp32", "--language", "f32,q8_0"]
    verdict, answer, expected = "", "", "?"
    steps: dict[str, list[str | Path | None]] = {
        "inspect": ["inspect", path, *given, "--json"],
        "export": ["export", path, *given, *_template(line), "-o", bundle, *types],
        "verify": ["verify", bundle, "--checkpoint", path, *given, "--quick", "--threads", "1", "--json"],
    }
    for name, words in steps.items():
        done = ran(*map(str, words))
        codes[name] = done.code
        if name == "verify" and done.out:
            verdict = json.loads(done.out)["verdict"]
        if done.code:
            return Walk(codes=codes, stopped=done.last_line, verdict=verdict, same_answer=False, errors=None)
    done, expected = _answered(line, bundle)
    codes["run"] = done.code
    answer = json.loads(done.out)["answer"] if done.code == 0 else ""
    with open_bundle(bundle, kv_type="f32", vision="fp32", language="f32") as model:
        errors = measure(line, Bundled(line, model))
    stopped = done.last_line if done.code else ""
    return Walk(
        codes=codes, stopped=stopped, verdict=verdict, same_answer=answer == expected.strip(), errors=errors
    )


def _template(line: Line) -> list[str]:
    """The option, where the line does not take upstream's template by itself."""
    asked = line.assets.template.name
    own = read_assets(replace(line.checkpoint, template=None)).template.name
    return [] if own == asked else ["--template", asked]


def _answered(line: Line, bundle: Path) -> tuple[Ran, str]:
    """`run` on the first question, and upstream's answer as text, of which `run` strips the ends."""
    case = next(case for case in line.cases.values() if len(case.turns) == 1 and case.pictures)
    question = case.turns[0][0].removeprefix("<image>").removeprefix("\n")
    variants = ["--vision", "fp32", "--language", "f32", "--kv-type", "f32", "--threads", "1", "--json"]
    length = ["--max-tokens", str(len(case.greedy))]
    done = ran("run", bundle, *line.shown(case), question, *variants, *length)
    stops = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))["prompt"]["stop_ids"]
    kept = takewhile(lambda token: token not in stops, case.greedy)
    return done, line.assets.text_tokenizer().decode(list(kept))
