"""`python -m tests.integration.write_lines_table`: each checkpoint line against upstream, stage by stage."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import transformers

from .checkpoint_lines import NAMES, NANOVLM, Errors, Line, Torch, measure, open_line
from .walk_lines import Walk, walk

PAGE = Path(__file__).parents[2] / "benchmarks" / "results" / "checkpoint_lines.md"
_HEAD = """# Checkpoint lines, stage by stage

Each row is a tiny checkpoint that upstream's own model classes wrote and computed with, at the commit named
([how](../../tests/fixtures/lines/README.md)). Prompts, ids and greedy answers are counted where they differ;
pixels, tower, connector and logits are the largest difference of any value.

    python -m tests.integration.write_lines_table

{versions}
"""
_STAGES = "prompt | ids | pixels | tower | connector | logits | greedy"
_RULE = "|---|---|---|---|---|---|---|"
_TORCH = f"""
## Through torch, float32

| checkpoint | upstream | layout | {_STAGES} |
|---|---|---{_RULE}
"""
_BUNDLE = f"""
## Through the bundle: ONNX Runtime (fp32) and llama.cpp (f32, f32 KV)

Phi's logits differ by more: llama.cpp reads its GELU from a table of float16.

| checkpoint | {_STAGES} |
|---{_RULE}
"""
_WALK = """
## As a user goes: exit codes of the commands

`export` writes fp32, f32 and q8_0, each held against the checkpoint; `verify --quick --checkpoint`; `run`
with upstream's picture and question, whose answer is compared with the text of upstream's greedy ids.

| checkpoint | inspect | export | verify | its verdict | run | answer |
|---|---|---|---|---|---|---|
"""


def stages(line: Line, errors: Errors | None) -> list[str]:
    """The cells of a row."""
    if errors is None:
        return ["-"] * 7
    cases = len(line.cases)
    values = (errors.pixels, errors.tower, errors.connector, errors.logits)
    counts = (errors.wrong_prompts, errors.wrong_ids, errors.wrong_greedy)
    prompts, ids, greedy = (f"{wrong} of {cases} wrong" for wrong in counts)
    return [prompts, ids, *(f"{value:.1e}" if value else "0" for value in values), greedy]


def walked(result: Walk) -> list[str]:
    """The cells of a row."""
    code = {name: str(result.codes.get(name, "-")) for name in ("inspect", "export", "verify", "run")}
    answer = "upstream's" if result.same_answer else result.stopped or "another"
    return [code["inspect"], code["export"], code["verify"], result.verdict or "-", code["run"], answer]


def rows(name: str) -> list[str]:
    """A row of each of the three tables."""
    line = open_line(name)
    repository, _, commit = line.upstream.partition("@")
    about = [f"`{line.name}`", f"{repository} `{commit[:7]}`", line.checkpoint.layout]
    by_torch = measure(line, Torch(line))
    with TemporaryDirectory() as folder:
        result = walk(line, Path(folder))
    sys.stderr.write(f"{name}: {result.codes} {result.stopped}\n")
    cells = (about + stages(line, by_torch), about[:1] + stages(line, result.errors))
    return [_row(each) for each in (*cells, about[:1] + walked(result))]


def write_page(path: Path = PAGE) -> None:
    """Measure every fixture, walk through it, and write the page."""
    torch.set_num_threads(1)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        by_line = list(pool.map(rows, (*NAMES, *NANOVLM)))
    text = _HEAD.format(versions=f"torch {torch.__version__}, transformers {transformers.__version__}.")
    for head, *found in zip((_TORCH, _BUNDLE, _WALK), *by_line, strict=True):
        text += head + "".join(found)
    path.write_text(text, encoding="utf-8")


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    write_page()
