"""Measures what llama.cpp makes of nano's interchange files, for benchmarks/results/interchange.md.

python -m tests.export.interchange.write_report [llama-mtmd-cli]

The program is llama.cpp's own, built from the sdist of llama-cpp-python on PyPI:

    pip download --no-deps --no-binary llama-cpp-python llama-cpp-python==0.3.36
    tar xzf llama_cpp_python-0.3.36.tar.gz
    cmake -S llama_cpp_python-0.3.36/vendor/llama.cpp -B build -DLLAMA_BUILD_TESTS=OFF -DBUILD_SHARED_LIBS=OFF
    cmake --build build --target llama-mtmd-cli
"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from tinyllava_edge.checkpoint.names import NANO, checkpoint_path
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.export.interchange.bundle_files import LlamaCppFiles
from tinyllava_edge.export.interchange.mmproj import MmprojSource, write_mmproj
from tinyllava_edge.export.interchange.mtmd_process import encode_pictures
from tinyllava_edge.export.interchange.picture_prompt import PicturePrompt
from tinyllava_edge.export.language_gguf import LanguageSource, write_language_gguf
from tinyllava_edge.image import open_picture, preprocess
from tinyllava_edge.metrics import kl_divergence, nmse
from tinyllava_edge.model.assets import read_assets
from tinyllava_edge.model.vlm import TinyLlava, load_model
from tinyllava_edge.prompt import place_markers

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "benchmarks" / "results" / "interchange.md"
QUESTIONS = ("What is in the picture?", "Is it food?")
MOST_TOKENS = 24
ASKED = 3  # times: the program may end before its log, which the answer is in, is written
_TEXT = """# What llama.cpp makes of nano's interchange files

Written by `python -m tests.export.interchange.write_report llama-mtmd-cli` (which says how to build it), on
{pictures} pictures and {asked} questions each; language model f32, tower float16, llama.cpp of
llama-cpp-python 0.3.36. Rows against torch's, behind the first; then how far the first token's distribution
is from torch's, with llama.cpp's rows at llama.cpp's positions; then how many greedy answers of llama.cpp's
own program are the checkpoint's.

| mmproj.gguf | rows | NMSE of the rows (median, worst) | KL of the first token (median, worst) | answers |
|---|---|---|---|---|
{rows}

llama-mtmd-cli at times ends with code 0 before its answer is written, all or in part: it is asked three
times, and its longest output counts. Ollama and LM Studio were not run.
"""


class _Kept(LanguageSource):
    """Whose chat template is for a picture that keeps its token 0."""

    def picture_prompt(self) -> PicturePrompt:
        return PicturePrompt(before=self.assets.template.question.split("{question}")[0], row_id=None)


def report_pictures() -> list[Path]:
    """Of all pages of this kind."""
    pictures = ROOT / "export" / "pictures"
    places = (pictures, pictures / "calibration", ROOT / "docs" / "pictures")
    return [path for place in places for path in sorted(place.iterdir()) if path.suffix in (".png", ".jpg")]


class Nano:
    """nano, its two pairs of files, and pictures."""

    def __init__(self, folder: Path) -> None:
        checkpoint = Checkpoint(checkpoint_path(NANO))
        self.model: TinyLlava = load_model(checkpoint)
        self.source = LanguageSource(checkpoint=checkpoint, assets=read_assets(checkpoint), name="nano")
        kept = _Kept(checkpoint=checkpoint, assets=self.source.assets, name="nano")
        how = self.source.assets.preprocessing
        self.pairs = {"as exported": folder / "exported", "token 0 kept": folder / "kept"}
        for pair, source in zip(self.pairs.values(), (self.source, kept), strict=True):
            pair.mkdir()
            write_language_gguf(pair / "f32.gguf", source, "f32")
        LlamaCppFiles(self.pairs["as exported"], self.source).write(self.model)
        plain = MmprojSource(model=self.model, preprocessing=how, name="nano", row=None)
        write_mmproj(self.pairs["token 0 kept"] / "mmproj.gguf", plain)
        self.pictures = report_pictures()

    def expected(self, picture: Path, question: str) -> tuple[torch.Tensor, list[int]]:
        """Torch's input rows, and the ids of its greedy answer."""
        assets = self.source.assets
        pixels = torch.from_numpy(preprocess(open_picture(picture), assets.preprocessing))[None]
        ids = assets.text_tokenizer().encode(assets.template, place_markers([(question, None)], 1))
        rows = self.model.splice(ids, self.model.encode(pixels))
        return rows, self.greedy(rows)

    def greedy(self, rows: torch.Tensor) -> list[int]:
        """Ids until a stop or `MOST_TOKENS`."""
        ids: list[int] = []
        while len(ids) < MOST_TOKENS:
            best = int(self.model.language_model(inputs_embeds=rows[None]).logits[0, -1].argmax())
            if best in self.source.assets.stop_ids:
                break
            ids.append(best)
            rows = torch.cat([rows, self.model.splice([best], torch.zeros(0, 0, rows.shape[1]))])
        return ids


@torch.no_grad()
def measured(nano: Nano, program: str) -> Iterator[str]:
    """Rows of the table."""
    tokenizer = nano.source.assets.text_tokenizer()
    answers = {(p, q): nano.expected(p, q) for p in nano.pictures for q in QUESTIONS}
    values = [np.asarray(open_picture(path)) for path in nano.pictures]
    for name, pair in nano.pairs.items():
        made = encode_pictures(pair / "mmproj.gguf", pair / "f32.gguf", values)
        errors, divergences, same = [], [], 0
        for picture, encoded in zip(nano.pictures, made, strict=True):
            pixels = torch.from_numpy(preprocess(open_picture(picture), nano.source.assets.preprocessing))[
                None
            ]
            wanted = nano.model.encode(pixels)[0]
            errors.append(nmse(wanted.numpy(), encoded.embeddings[1:]))
            for question in QUESTIONS:
                rows, ids = answers[picture, question]
                start = next(i for i in range(len(rows)) if torch.equal(rows[i : i + len(wanted)], wanted))
                before = rows[: start - (name == "as exported")]
                theirs = torch.cat(
                    [before, torch.from_numpy(encoded.embeddings), rows[start + len(wanted) :]]
                )
                expected = nano.model.language_model(inputs_embeds=rows[None]).logits[0, -1:].numpy()
                found = nano.model.language_model(inputs_embeds=theirs[None]).logits[0, -1:].numpy()
                divergences.append(float(kl_divergence(expected, found)[0]))
                if program:
                    same += ask(program, pair, picture, question) == tokenizer.decode(ids).strip()
        total = len(nano.pictures) * len(QUESTIONS)
        told = f"{same} of {total}" if program else "not run"
        yield (
            f"| {name} | {len(made[0].embeddings)} | {np.median(errors):.1e}, {max(errors):.1e} | "
            f"{np.median(divergences):.1e}, {max(divergences):.1e} | {told} |"
        )


def ask(program: str, pair: Path, picture: Path, question: str) -> str:
    """What llama-mtmd-cli answers."""
    files = ["-m", str(pair / "f32.gguf"), "--mmproj", str(pair / "mmproj.gguf"), "--image", str(picture)]
    settings = ["--jinja", "--temp", "0", "-n", str(MOST_TOKENS), "-ctk", "f32", "-ctv", "f32", "-t", "2"]
    command = [program, *files, *settings, "-p", question]
    said = (subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(ASKED))
    return max((text.strip() for text in said), key=len)


def main() -> None:
    program = sys.argv[1] if len(sys.argv) > 1 else ""
    with TemporaryDirectory() as scratch:
        nano = Nano(Path(scratch))
        rows = "\n".join(measured(nano, program))
    pictures, asked = len(nano.pictures), len(QUESTIONS)
    PAGE.write_text(_TEXT.format(pictures=pictures, asked=asked, rows=rows), encoding="utf-8")


if __name__ == "__main__":
    main()
