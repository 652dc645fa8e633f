"""`python -m tests.integration.write_field_table FIELD [FIXTURES]`: what becomes of inputs from the field.

Both are folders that the repository does not hold; without the second, FIELD stands for it.
"""

import itertools
import json
import os
import re
import shutil
import sys
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load_file, save_file

from tests.integration.user_commands import ran

PAGE = Path(__file__).parents[2] / "benchmarks" / "results" / "field_inputs.md"
_MOST = 300  # characters of a cell
_PICTURE = Path(__file__).parents[2] / "docs" / "pictures" / "emoji.webp"
_SHARDED = Path(__file__).parents[1] / "fixtures/checkpoints/qwen2-siglip-mlp2x-bf16-sharded/model"
_PROCESSOR = "sources/tiny-random/siglip-so400m-patch14-tiny-a/preprocessor_config.json"
_HEAD = """# Inputs from the field

Small inputs made after public reports of people who do this job; each was refused, or taken wrongly, by an
early state of this project. What each command ends with now, and the line that it says. The inputs are not
in this repository.

    python -m tests.integration.write_field_table FIELD FIXTURES

| input | command | exit code | what it says | as it should be |
|---|---|---|---|---|
"""
_EXPORT = "export {at} -o {out}/{name} --vision fp32 --language f32 --sources {sources} --force"


@dataclass(frozen=True)
class Step:
    """A command, and what it must end with and say."""

    about: str  # the input
    line: str
    code: int
    says: str  # a pattern


def _checkpoint(
    name: str, says: str, more: str = "", *, about: str = "", sources: str = "{sources}"
) -> Iterator[Step]:
    at = f"{{field}}/checkpoints/{name}"
    about = about or f"checkpoints/{name}"
    yield Step(about, f"inspect {at} --sources {sources}{more} --json", 0, says)
    export = _EXPORT.format_map(_Kept(at=at, name=name, sources=sources))
    yield Step(about, f"{export}{more}", 0, "verified")
    verify = f"verify {{out}}/{name} --checkpoint {at} --sources {sources}{more} --quick --threads 1"
    yield Step(about, verify, 0, "verified")


class _Kept(dict[str, str]):
    """A field that is not there stays."""

    def __missing__(self, key: str) -> str:
        return f"{{{key}}}"


def _refused(about: str, at: str, says: str, more: str = "") -> Step:
    return Step(about, f"{_EXPORT.format_map(_Kept(at=at, name='refused'))}{more}", 2, says)


def _checkpoints() -> Iterator[Step]:
    yield from _checkpoint("hf5_llava_procnew", "LlavaForConditionalGeneration")
    yield _refused("checkpoints/bin_flat", "{field}/checkpoints/bin_flat", "--allow-pickle")
    yield from _checkpoint("bin_flat", "one pytorch_model.bin", " --allow-pickle")
    at = "{field}/checkpoints/ckptN_lora"
    yield _refused("checkpoints/ckptN_lora", at, r"a LoRA adapter without its base.*--sources BASE")
    over = "checkpoints/ckptN_lora over its base"
    base = "{made}/base"  # with the processor of its tower, which is no public one
    yield from _checkpoint("ckptN_lora", "LoRA adapter over another checkpoint", about=over, sources=base)
    yield _refused("ZeRO shards (made)", "{made}/zero", r"ZeRO shards of DeepSpeed.*Run there")
    yield from _checkpoint("abs_public", "flat safetensors")
    at = "{field}/checkpoints/tied_untied_qwen"
    yield _refused("checkpoints/tied_untied_qwen", at, "tie_word_embeddings")
    at = "{field}/checkpoints/lora_nested"
    yield _refused("checkpoints/lora_nested", at, r"adapter.*not merged|lora_A", " --allow-pickle")
    yield from _checkpoint("tok_image", "flat safetensors")
    stale = "a stale model.safetensors (made)"
    yield Step(stale, "inspect {made}/stale --sources {sources} --json", 0, "not_read")
    export = _EXPORT.format_map(_Kept(at="{made}/stale", name="stale"))
    yield Step(stale, export, 0, r"takes first.*is not, and differs.*is the newer one")


def _questions() -> Iterator[Step]:
    for name, code, says in (
        ("sqa.json", 0, "scienceqa"),
        ("textvqa.jsonl", 0, '"unscored": 2'),
        ("llava_q.jsonl", 0, '"unscored": 2'),
        ("evtrunc.json", 1, "t.jpg"),
        ("int_answer.json", 0, "exact"),
        ("multi_answer.json", 0, "exact"),
        ("mme.txt", 0, '"rule": "mme"'),
        ("tsv.tsv", 1, "picture"),
        ("bomq.json", 0, "exact"),
    ):
        pictures = "{made}/mme" if name == "mme.txt" else "{field}/train/img"
        asked = f"--questions {{field}}/eval/{name} --images {pictures}"
        answers = f"--answers {{out}}/{name}.answers --force"
        line = f"eval {{out}}/bin_flat {asked} --max-tokens 4 --threads 1 {answers}"
        yield Step(f"eval/{name}", line, code, says)


def _training() -> Iterator[Step]:
    for name, code, says in (
        ("mid_trunc.json", 1, "damaged picture"),
        ("mid_fixed.json", 0, ""),
        ("mid_long.json", 1, "no answer left"),
        ("long.json", 1, "no answer left"),
        ("jsonl.jsonl", 0, ""),
        ("bom.json", 0, ""),
        ("roles_user.json", 0, ""),
        ("openai_style.json", 0, ""),
        ("image_list1.json", 0, ""),
        ("video.json", 1, "video"),
        ("marker_in_answer.json", 1, "markers"),
        ("text_marker.json", 1, "markers"),
    ):
        data = f"--data {{field}}/train/{name} --images {{field}}/train/img --sources {{sources}}"
        start = "--from {field}/checkpoints/tok_image"
        yield Step(f"train/{name}", f"train --check {data} {start}", code, says)
        if code and name != "long.json" and name != "marker_in_answer.json":  # which have no good record
            line = (
                f"train {data} {start} -o {{out}}/tuned-{name} --batch-size 2 --skip-bad --force --threads 1"
            )
            yield Step(f"train/{name}", line, 0, "left out|left_out")


def _siblings() -> Iterator[Step]:
    """Made inputs of the same kinds."""
    for name, code, says in (
        ("openai_parts.jsonl", 0, ""),
        ("marks.jsonl", 0, ""),
        ("video_marker.json", 1, "<video> where a picture"),
        ("address.json", 1, "is an address"),
        ("twice.json", 1, "'image' is there twice"),
        ("table.csv", 2, "expected a JSON list of objects"),
    ):
        data = f"--data {{made}}/train/{name} --images {{field}}/train/img --sources {{sources}}"
        line = f"train --check {data} --from {{field}}/checkpoints/tok_image"
        yield Step(f"train/{name} (made)", line, code, says)
    for name, code, says in (
        ("marks.jsonl", 0, "exact"),
        ("lines.tsv", 0, "mmbench"),
        ("columns.tsv", 2, "without the column 'index'"),
        ("other_key.json", 2, "has the key 'image_path'"),
    ):
        asked = f"--questions {{made}}/eval/{name} --images {{field}}/train/img"
        line = f"eval {{out}}/bin_flat {asked} --max-tokens 4 --threads 1"
        yield Step(f"eval/{name} (made)", line, code, says)


def _pictures() -> Iterator[Step]:
    for name in ("pic.avif", "mp48.jpg", "pic.ppm"):
        yield Step(
            f"pictures/{name}",
            f"run {{out}}/bin_flat {{field}}/pictures/{name} What? --max-tokens 3 --threads 1",
            0,
            "",
        )
    line = "run {out}/bin_flat {field}/pictures/trunc.jpg What? --max-tokens 3 --threads 1"
    yield Step("pictures/trunc.jpg", line, 2, r"trunc\.jpg")


def make_inputs(folder: Path, field: Path, fixtures: Path) -> None:
    """Those that FIELD only names: ZeRO shards alone, a stale file beside newer shards, an adapter's base."""
    shutil.copytree(fixtures / "checkpoints/phi-siglip-mlp2x/model", folder / "base")
    shutil.copy(fixtures / _PROCESSOR, folder / "base")
    (folder / "mme").mkdir(parents=True)
    shutil.copy(field / "train/img/c.jpg", folder / "mme/0001.jpg")
    (folder / "zero" / "global_step10").mkdir(parents=True)
    (folder / "zero" / "latest").write_text("global_step10")
    (folder / "zero" / "zero_to_fp32.py").write_text("# args: checkpoint_dir output_dir")
    shutil.copy(_SHARDED / "config.json", folder / "zero")
    stale = Path(shutil.copytree(_SHARDED, folder / "stale"))
    tensors: dict[str, torch.Tensor] = {}
    for shard in sorted(stale.glob("*-of-*.safetensors")):
        tensors |= load_file(shard)
    save_file({name: tensor * 2 for name, tensor in tensors.items()}, stale / "model.safetensors")
    os.utime(stale / "model.safetensors", (1, 1))


def make_siblings(folder: Path) -> None:
    """Training data and questions that each stray from a known form in one place."""
    train, asked = folder / "train", folder / "eval"
    for path in (train, asked):
        path.mkdir(parents=True)
    said = {"role": "assistant", "content": "A face."}
    parts = [{"type": "image_url", "image_url": {"url": "a.png"}}, {"type": "text", "text": "What?"}]
    talk = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A face."}]
    record, question = {"image": "a.png", "conversations": talk}, {"question": "What?", "answer": "face"}
    video = {"conversations": [{"from": "human", "value": "<video>\nWhat?"}, talk[1]]}
    cell = b64encode(_PICTURE.read_bytes()).decode()
    for path, text in (
        (train / "openai_parts.jsonl", json.dumps({"messages": [{"role": "user", "content": parts}, said]})),
        (train / "marks.jsonl", f"\ufeff{json.dumps(record)}\n" * 2),
        (train / "video_marker.json", json.dumps([video])),
        (train / "address.json", json.dumps([{**record, "image": "https://example.org/a.png"}])),
        (train / "twice.json", json.dumps([record])[:-2] + ', "image": "b.png"}]'),
        (train / "table.csv", "image,question,answer\na.png,What?,A face.\n"),
        (asked / "marks.jsonl", f"\ufeff{json.dumps({'image': 'a.png', **question})}\n" * 2),
        (
            asked / "lines.tsv",
            f'index\timage\tquestion\tA\tB\tanswer\n0\t"{cell[:40]}\n{cell[40:]}"\tWhat?\tx\ty\tb\n',
        ),
        (asked / "columns.tsv", f"image\tquestion\tanswer\n{cell}\tWhat?\tface\n"),
        (asked / "other_key.json", json.dumps([{"image_path": "a.png", **question}])),
    ):
        path.write_text(text, encoding="utf-8")


def write_page(field: Path, fixtures: Path, path: Path = PAGE) -> int:
    """Run every command, write the page, and return how many ended otherwise than they should."""
    found: list[tuple[str, bool]] = []
    with TemporaryDirectory() as scratch, ThreadPoolExecutor(os.cpu_count()) as pool:
        out, made = Path(scratch, "out"), Path(scratch, "made")
        out.mkdir()
        make_inputs(made, field, fixtures)
        make_siblings(made)
        sources = fixtures / "sources"
        places = {"field": field, "fixtures": fixtures, "sources": sources, "out": out, "made": made}
        for asked in (_checkpoints(), itertools.chain(_questions(), _training(), _siblings(), _pictures())):
            by_input = itertools.groupby(asked, key=lambda step: step.about.partition(" ")[0])
            groups = [list(group) for _, group in by_input]
            for rows in pool.map(lambda group: [_row(step, places) for step in group], groups):
                found += rows
    path.write_text(_HEAD + "".join(row for row, _ in found), encoding="utf-8")
    return sum(not is_right for _, is_right in found)


def _row(step: Step, places: dict[str, Path]) -> tuple[str, bool]:
    """A row of the table, and whether it is as it should be."""
    done = ran(*(word.format_map(places) for word in step.line.split()), cache=places["out"] / "cache")
    is_right = done.code == step.code and bool(re.search(step.says, done.out + done.errors, re.DOTALL))
    text = done.errors + done.out
    for name, place in places.items():
        text = text.replace(str(place), name.upper())
    said = _line_with(step.says, text)
    shown = re.sub(r"\{(\w+)\}", lambda match: match[1].upper(), step.line)
    cells = (step.about, f"`{shown}`", str(done.code), said, "yes" if is_right else "**no**")
    sys.stderr.write(f"{step.about}: {done.code} {'' if is_right else f'NOT RIGHT {said}'}\n")
    return f"| {' | '.join(cells)} |\n", is_right


def _line_with(pattern: str, said: str) -> str:
    """The line that tells, or the last one; of a line of JSON, what stands around what tells."""
    lines = [line.strip(" │") for line in said.splitlines() if line.strip()]
    plain = [line for line in lines if not line.startswith("{")]
    telling = [line for line in plain if pattern and re.search(pattern, line)]
    line = (telling or ([] if pattern else plain) or lines or [""])[-1]
    if pattern and line.startswith("{") and (match := re.search(pattern, line)):
        line = f"... {line[max(match.start() - 12, 0) : match.end() + 60]} ..."
    cut = line if len(line) <= _MOST else f"{line[:_MOST]} ..."
    return cut.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    given = [Path(word).resolve() for word in sys.argv[1:]]
    if not 1 <= len(given) <= 2:
        sys.exit(__doc__)
    sys.exit(write_page(given[0], given[-1] if len(given) == 2 else given[0]) > 0)
