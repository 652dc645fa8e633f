"""The recipe of nano, from nothing to a checkpoint: tokenizer, tower, pretrain, finetune."""

import hashlib
import json
import math
import random
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import save_file

from tinyllava_edge.atomic_files import check_apart, foreign_file, output_directory
from tinyllava_edge.bundle import sha256_of_file
from tinyllava_edge.checkpoint.config import IMAGE_MARKER, SIDECAR_FILE
from tinyllava_edge.checkpoint.files import PROCESSOR_FILE, read_json_object
from tinyllava_edge.checkpoint.layouts import FLAT_FILE
from tinyllava_edge.checkpoint.names import NANO, checkpoint_path
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.errors import DataError
from tinyllava_edge.image import open_picture, preprocess
from tinyllava_edge.model.assets import read_assets
from tinyllava_edge.model.vlm import TinyLlava, build_model, upstream_state_dict
from tinyllava_edge.prompt import TextTokenizer, label_answers, place_markers, template_named

from .augment import augment
from .curve import write_curve
from .distill import distil
from .loop import Loop, choose_precision, train_stage
from .packed import PackedBatch, pack, packed_loss
from .questions import QuestionBook, dialogue, read_records
from .recipe import Distillation, Recipe, Stage
from .teacher import load_teacher
from .tokenizer import write_tokenizer
from .unlabelled import read_unlabelled
from .views import Drawn, look

LOG_FILE = "training_log.jsonl"
CURVE_FILE = "training_curve.png"


def train_nano(
    out: Path,
    *,
    data: Path,
    images: Path,
    recipe: Recipe,
    seed: int,
    unlabelled: Sequence[Path] = (),
    force: bool = False,
) -> None:
    """Train a small model from nothing and write its checkpoint.

    Args:
        out: directory of the checkpoint.
        data: LLaVA JSON with a `type` on every record (see questions.py).
        images: folder that its image paths are relative to.
        recipe: sizes and stages.
        seed: of weights, order, views and wordings.
        unlabelled: folders of pictures that the tower learns from besides those of the data.
        force: replace an existing `out`.

    Raises:
        OutputExistsError: `out` exists, and `force` is false or it is no checkpoint that was trained.
        UsageError: `out` is, holds or lies in what is read.
        DataError: the data are malformed or pictures are missing.
    """
    check_apart(out, (data, *unlabelled))
    with output_directory(out, force=force, mark=_mark) as work:
        records = read_records(data, images)
        book = QuestionBook(records, images)
        others = read_unlabelled(unlabelled, recipe.config["vision_config"]["image_size"])
        _write_frame(work, recipe, records)
        chat = recipe.stages[-1].template
        origin = {
            "template": chat,
            "image_tokens": "token 0 dropped (strategy patch)",
            "recipe": recipe.name,
            "seed": seed,
            "data": data.name,
            "data_sha256": sha256_of_file(data),
            "unlabelled_pictures": len(others),
            "unlabelled_sha256": hashlib.sha256(others.numpy().tobytes()).hexdigest(),
        }
        _write_json(work / SIDECAR_FILE, origin)
        torch.manual_seed(seed)
        checkpoint = Checkpoint(work)
        assets = read_assets(checkpoint)
        model = build_model(checkpoint.config)
        # The recipe is made for two cores.
        accelerator = Accelerator(cpu=True, mixed_precision=choose_precision(recipe.precision))
        loop = Loop(accelerator=accelerator, log=work / LOG_FILE)
        pictures = [preprocess(open_picture(facts.picture), assets.preprocessing) for facts in book.facts]
        pixels = torch.from_numpy(np.stack(pictures))
        _teach_tower(model, recipe.distillation, book, pixels, others, seed=seed, loop=loop)
        for number, stage in enumerate(recipe.stages, start=1):
            batches = _batches(stage, book, assets.text_tokenizer(), pixels, seed=seed + number)
            train_stage(
                model,
                stage,
                (partial(packed_loss, model, batch) for batch in batches),
                num_steps=stage.epochs * math.ceil(len(pixels) / stage.batch_size),
                loop=loop,
            )
        _write_weights(model, work / FLAT_FILE)
        write_curve(work / LOG_FILE, work / CURVE_FILE)


def _write_frame(work: Path, recipe: Recipe, records: Sequence[Mapping[str, Any]]) -> None:
    """Everything of the checkpoint but sidecar and weights; the processor is that of the shipped nano."""
    _write_json(work / "config.json", recipe.config)
    shutil.copyfile(checkpoint_path(NANO) / PROCESSOR_FILE, work / PROCESSOR_FILE)
    chat = template_named(recipe.stages[-1].template)
    cut = replace(chat, end=IMAGE_MARKER)
    rendered = [cut.render(place_markers([dialogue(record)], 1)) for record in records]
    texts = [text for prompt in rendered for text in prompt.split(IMAGE_MARKER)]
    write_tokenizer(texts, work, vocab_size=recipe.config["vocab_size"])


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _teach_tower(
    model: TinyLlava,
    how: Distillation,
    book: QuestionBook,
    pixels: torch.Tensor,
    others: torch.Tensor,
    *,
    seed: int,
    loop: Loop,
) -> None:
    """Stage 0; what the teacher said, hundreds of megabytes, is gone when it is over."""
    names = sorted({facts.name for facts in book.facts})
    drawn = Drawn(pixels, torch.tensor([names.index(facts.name) for facts in book.facts]), others)
    generator = torch.Generator().manual_seed(seed)
    side = model.config.vision.image_size // model.config.vision.patch_size
    views = look(load_teacher(), drawn, how, side=side, generator=generator, accelerator=loop.accelerator)
    distil(model.vision_tower, views, how, generator=generator, loop=loop)


def _batches(
    stage: Stage, book: QuestionBook, tokenizer: TextTokenizer, pixels: torch.Tensor, *, seed: int
) -> Iterator[PackedBatch]:
    """Fresh questions about a fresh view of every picture, once an epoch.

    Some views have up to half of another picture of the same kind blended in. So a kind is not learned as a
    list of things: what lies between two birds is a bird too.

    Args:
        stage: template, batch size, epochs.
        book: facts and wordings.
        tokenizer: of the model.
        pixels: [pictures, 3, height, width], in the order of the book's facts.
        seed: of order, views and wordings.
    """
    generator, rng = torch.Generator().manual_seed(seed), random.Random(seed)
    template = template_named(stage.template)
    by_kind: dict[str, list[int]] = {}
    for index, facts in enumerate(book.facts):
        by_kind.setdefault(facts.kind, []).append(index)
    for _ in range(stage.epochs):
        order = torch.randperm(len(book.facts), generator=generator)
        for chosen in torch.split(order, stage.batch_size):
            shown = [book.facts[index] for index in chosen]
            captions = template.name == "pretrain"
            asked = [[book.caption(facts)] if captions else book.ask(facts, rng) for facts in shown]
            rows = [[label_answers(tokenizer, template, turns) for turns in row] for row in asked]
            views = augment(pixels[chosen], generator)
            kin = [rng.choice(by_kind[facts.kind]) for facts in shown]
            others = augment(pixels[kin], generator)
            blended = torch.rand(len(kin), generator=generator) < stage.kin_share
            share = 0.5 * torch.rand(len(kin), generator=generator) * blended
            yield pack(rows, torch.lerp(views, others, share[:, None, None, None]))


def _mark(directory: Path) -> str:
    """Whether a directory is what `train_nano` wrote and nothing else: see `atomic_files.Mark`."""
    if "unlabelled_sha256" not in read_json_object(directory / SIDECAR_FILE):
        return "is no checkpoint of this recipe"
    own = (SIDECAR_FILE, "config.json", FLAT_FILE, PROCESSOR_FILE, LOG_FILE, CURVE_FILE)
    return foreign_file(
        directory, lambda name: name in own or name.startswith(("tokenizer", "special_tokens"))
    )


def _write_weights(model: TinyLlava, path: Path) -> None:
    """As TinyLLaVA Factory does, in float16.

    Raises:
        DataError: a weight is too large for it.
    """
    state = {name: tensor.half().contiguous() for name, tensor in upstream_state_dict(model).items()}
    for name, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise DataError(f"{name}: not finite in float16. The training diverged: lower the learning rate.")
    save_file(state, path, metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors makes it private
