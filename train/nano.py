"""The recipe of nano, from nothing to a checkpoint: tokenizer, tower, pretrain, finetune."""

import hashlib
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from tinyllava_edge.atomic_files import output_directory
from tinyllava_edge.bundle import sha256_of_file
from tinyllava_edge.checkpoint.config import IMAGE_MARKER, SIDECAR_FILE
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.model.assets import PROCESSOR_FILE, read_assets
from tinyllava_edge.model.vlm import build_model
from tinyllava_edge.prompt import TextTokenizer, template_named

from .augment import augment
from .curve import write_curve
from .data import Conversation, PictureReader, encode_conversation, read_conversations, read_records
from .distill import distil
from .loop import TrainingLog, choose_precision, count_steps, shuffled, train_stage
from .packed import Labelled, PackedBatch, pack, packed_loss
from .questions import Facts, QuestionBook
from .recipes import Recipe, Stage
from .save import write_weights
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
        OutputExistsError: `out` exists and `force` is false.
        DataError: the data are malformed or pictures are missing.
    """
    with output_directory(out, force=force) as work:
        conversations = read_conversations(data, images)
        book = QuestionBook(read_records(data), images)
        others = read_unlabelled(unlabelled, recipe.config["vision_config"]["image_size"])
        origin = _origin(recipe, seed=seed, data=data, unlabelled=others)
        _write_frame(work, recipe, conversations, origin)
        torch.manual_seed(seed)
        checkpoint = Checkpoint(work)
        config, assets = checkpoint.config, read_assets(checkpoint)
        model = build_model(config)
        precision = choose_precision(recipe.precision)
        accelerator = Accelerator(cpu=True, mixed_precision=precision)  # the recipe is made for two cores
        log = TrainingLog(work / LOG_FILE)
        reader = PictureReader(assets.preprocessing)
        names = sorted({facts.name for facts in book.facts})
        generator = torch.Generator().manual_seed(seed)
        views = look(
            load_teacher(),
            Drawn(
                reader.read([facts.picture for facts in book.facts]),
                torch.tensor([names.index(facts.name) for facts in book.facts]),
                others,
            ),
            recipe.distillation,
            side=config.vision.image_size // config.vision.patch_size,
            generator=generator,
            accelerator=accelerator,
        )
        distil(
            model.vision_tower,
            views,
            recipe.distillation,
            generator=generator,
            gradient_norm=recipe.gradient_norm,
            accelerator=accelerator,
            log=log,
        )
        del views  # hundreds of megabytes
        for index, stage in enumerate(recipe.stages):
            batches = _Batches(stage, book, assets.text_tokenizer(), reader, seed=seed + 1 + index)
            train_stage(
                model,
                stage,
                (partial(packed_loss, model, batch) for batch in batches),
                num_steps=count_steps(len(book.facts), stage),
                gradient_norm=recipe.gradient_norm,
                accelerator=accelerator,
                log=log,
            )
        write_weights(model, work)
        write_curve(work / LOG_FILE, work / CURVE_FILE)


class _Batches:
    """Fresh questions about a fresh view of every picture, once an epoch."""

    def __init__(
        self,
        stage: Stage,
        book: QuestionBook,
        tokenizer: TextTokenizer,
        reader: PictureReader,
        *,
        seed: int,
    ) -> None:
        self.stage, self.book, self.tokenizer, self.reader = stage, book, tokenizer, reader
        self.by_kind: dict[str, list[Path]] = {}
        for facts in book.facts:
            self.by_kind.setdefault(facts.kind, []).append(facts.picture)
        self.generator, self.rng = torch.Generator().manual_seed(seed), random.Random(seed)

    def __iter__(self) -> Iterator[PackedBatch]:
        for _ in range(self.stage.epochs):
            for chosen in shuffled(len(self.book.facts), self.generator, self.stage.batch_size):
                yield self._batch(chosen)

    def _batch(self, chosen: Sequence[int]) -> PackedBatch:
        facts = [self.book.facts[index] for index in chosen]
        return pack([self._row(f) for f in facts], self._views(facts))

    def _views(self, facts: Sequence[Facts]) -> torch.Tensor:
        """Augmented pictures; some with up to half of another of the same kind blended in.

        So a kind is not learned as a list of things: what lies between two birds is a bird too.
        """
        pixels = augment(self.reader.read([f.picture for f in facts]), self.generator)
        kin = augment(
            self.reader.read([self.rng.choice(self.by_kind[f.kind]) for f in facts]), self.generator
        )
        blended = torch.rand(len(facts), generator=self.generator) < self.stage.kin_share
        share = 0.5 * torch.rand(len(facts), generator=self.generator) * blended
        return torch.lerp(pixels, kin, share[:, None, None, None])

    def _row(self, facts: Facts) -> list[Labelled]:
        asked = (
            [self.book.caption(facts)]
            if self.stage.template == "pretrain"
            else self.book.ask(facts, self.rng)
        )
        template = template_named(self.stage.template)
        return [encode_conversation(self.tokenizer, template, c.turns) for c in asked]


def _origin(recipe: Recipe, *, seed: int, data: Path, unlabelled: torch.Tensor) -> Mapping[str, Any]:
    """What a checkpoint was made of."""
    return {
        "recipe": recipe.name,
        "seed": seed,
        "data": data.name,
        "data_sha256": sha256_of_file(data),
        "unlabelled_pictures": len(unlabelled),
        "unlabelled_sha256": hashlib.sha256(unlabelled.numpy().tobytes()).hexdigest(),
    }


def _write_frame(
    work: Path, recipe: Recipe, conversations: Sequence[Conversation], origin: Mapping[str, Any]
) -> None:
    """Everything of the checkpoint but the weights."""
    config = dict(recipe.config)
    size = config["vision_config"]["image_size"]
    chat = template_named(recipe.stages[-1].template)
    _write_json(work / "config.json", config)
    processor = {
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "SiglipImageProcessor",
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "SiglipProcessor",
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"height": size, "width": size},
    }
    _write_json(work / PROCESSOR_FILE, processor)
    sidecar = {
        "template": chat.name,
        "image_tokens": "token 0 dropped (strategy patch)",
        **origin,
    }
    _write_json(work / SIDECAR_FILE, sidecar)
    rendered = [chat.render(conversation.turns, end=IMAGE_MARKER) for conversation in conversations]
    texts = [text for prompt in rendered for text in prompt.split(IMAGE_MARKER)]
    write_tokenizer(
        texts, work, vocab_size=recipe.vocab_size, max_length=config["tokenizer_model_max_length"]
    )


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
