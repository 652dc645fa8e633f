"""What rivals are given: the request as files that everybody reads, and the model in their own formats."""

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tinyllava_edge.benchmarks.bench.worker import Request
from tinyllava_edge.bundle import TOKENIZER_FILE, Bundle
from tinyllava_edge.checkpoint.config import IMAGE_MARKER
from tinyllava_edge.checkpoint.names import checkpoint_path
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.console import note
from tinyllava_edge.errors import UsageError
from tinyllava_edge.gguf_header import read_gguf_header
from tinyllava_edge.image import open_picture, preprocess
from tinyllava_edge.prompt import TextTokenizer, place_markers
from tinyllava_edge.reference_tensors import read_reference_tensors

from .lines import PICTURE, Prompt

_LLAVA = "LlavaForConditionalGeneration"
_DONE = "converted.json"  # written last: without it a folder is what a killed conversion left


@dataclass(frozen=True)
class Prepared:
    """The request for rivals: the fields of their `Task`, and the folder that its files are in."""

    folder: Path
    fields: dict[str, Any]
    tokenizer: TextTokenizer

    def without_last_token(self) -> dict[str, Any]:
        """The fields for an mmproj file that gives the token in front of the picture itself.

        The text stops one token short of it; where no shorter text does, the fields stay as they are.
        """
        short = {name: self._cut(self.fields[name]) for name in ("first", "second")}
        return self.fields if None in short.values() else {**self.fields, **short}

    def _cut(self, prompt: Prompt) -> Prompt | None:
        before, after = prompt.parts()
        text, rest = prompt.text.split(IMAGE_MARKER)
        for end in range(len(text) - 1, -1, -1):
            if tuple(self.tokenizer.encode_text(text[:end])) == before[:-1]:
                return Prompt((*before[:-1], PICTURE, *after), f"{text[:end]}{IMAGE_MARKER}{rest}")
        return None


def prepare(bundle: Bundle, request: Request, folder: Path) -> Prepared:
    """Write the picture at the tower's own size, and its pixels; tokenize both questions.

    Raises:
        ImageError: the picture cannot be read.
    """
    how = bundle.manifest.vision.preprocessing
    pixels = preprocess(open_picture(Path(request.picture)), how)
    mean, std = (np.array(values, dtype=np.float32)[:, None, None] for values in (how.mean, how.std))
    values = np.rint((pixels * std + mean) / how.rescale_factor).clip(0, 255).astype(np.uint8)
    Image.fromarray(values.transpose(1, 2, 0)).save(folder / "picture.png")
    np.save(folder / "pixels.npy", pixels[None])
    tokenizer = TextTokenizer(bundle.read_text(TOKENIZER_FILE), bos_id=bundle.manifest.prompt.bos_id)
    template = bundle.manifest.prompt.template

    def prompt_of(question: str) -> Prompt:
        turns = place_markers([(question, None)], 1)
        return Prompt(tuple(tokenizer.encode(template, turns, honour_special=False)), template.render(turns))

    fields = {
        "num_tokens": request.num_tokens,
        "picture": str(folder / "picture.png"),
        "pixels": str(folder / "pixels.npy"),
        "first": prompt_of(request.question),
        "second": prompt_of(request.second_question),
    }
    return Prepared(folder, fields, tokenizer)


def find_mmproj(bundle: Bundle, given: Path | None) -> Path:
    """The vision tower and connector as llama.cpp reads them.

    Raises:
        UsageError: there is no such file.
    """
    found = given or next(iter(sorted(bundle.root.rglob("mmproj*.gguf"))), None)
    if found is None or not found.is_file():
        raise UsageError(
            f"no mmproj {found or f'in {bundle.root}'}: export with --interchange mmproj, or give one with "
            "--peers-mmproj."
        )
    return found.absolute()


def gives_token(mmproj: Path, bundle: Bundle) -> bool:
    """Whether an mmproj file's first row is the token in front of the picture: its tower is wider for that.

    docs/interchange.md has how `export --interchange mmproj` does it; other files keep the tower's first row.

    Raises:
        BundleError: no GGUF file.
    """
    width = read_gguf_header(mmproj).entries.get("clip.vision.embedding_length")
    return width is not None and width.value > read_reference_tensors(bundle).tower.shape[-1]


def find_checkpoint_of(bundle: Bundle, given: Path | None) -> Path:
    """The model as transformers' own LLaVA class reads it: as given, in the bundle, or where it came from.

    Raises:
        UsageError: there is none.
    """
    inside = [path.parent for path in sorted(bundle.root.rglob("config.json"))]
    for path in [given] if given else [*inside, checkpoint_path(bundle.manifest.source.name)]:
        if _is_llava(path):
            return path.absolute()
    raise UsageError(
        f"{given or bundle.root}: no {_LLAVA} of transformers: export with --interchange transformers, or "
        "give one with --peers-checkpoint."
    )


def _is_llava(path: Path) -> bool:
    try:
        return _LLAVA in json.loads((path / "config.json").read_bytes()).get("architectures", ())
    except (OSError, ValueError, AttributeError):
        return False


def converted(name: str, start: list[str], checkpoint: Path, home: Path, settings: dict[str, Any]) -> Path:
    """What a rival's own converter made of a checkpoint, made now where it is not there yet.

    Raises:
        UsageError: the converter failed; with its last line.
    """
    target = home / f"{name}-{Checkpoint(checkpoint).sha256[:12]}"
    if (target / _DONE).is_file():
        return target.absolute()
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    note(f"{name}: its own converter makes {target}")
    log = target / "convert.log"
    with log.open("wb") as words:
        command = [*start, str(checkpoint), str(target.absolute()), json.dumps(settings)]
        code = subprocess.run(command, stdout=words, stderr=words, check=False).returncode
    if code != 0:
        said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["nothing"]
        raise UsageError(f"its converter ended with code {code} and said {said[-1][:300]!r}; {log}")
    (target / _DONE).write_text(json.dumps(settings), encoding="utf-8")
    return target.absolute()
