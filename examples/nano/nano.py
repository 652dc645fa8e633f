"""The recipe of nano, from nothing to a checkpoint: tokenizer, tower, pretrain, finetune."""

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import save_file

from tinyllava_edge.atomic_files import output_directory
from tinyllava_edge.bundle import sha256_of_file
from tinyllava_edge.checkpoint.config import IMAGE_MARKER, SIDECAR_FILE
from tinyllava_edge.checkpoint.opened import FLAT_FILE, Checkpoint
from tinyllava_edge.errors import DataError
from tinyllava_edge.image import open_picture, preprocess
from tinyllava_edge.model.assets import PROCESSOR_FILE, read_assets
from tinyllava_edge.model.vlm import TinyLlava, build_model, upstream_state_dict
from tinyllava_edge.prompt import TextTokenizer, place_markers, template_named

from .augment import augment
from .curve import write_curve
from .distill import distil
from .loop import Loop, choose_precision, count_steps, shuffled, train_stage
from .packed import Labelled, PackedBatch, label_answers, pack, packed_loss
from .questions import Facts, QuestionBook, dialogue, read_records
from .recipe import Recipe, Stage
from .teacher import load_teacher
from .tokenizer import write_json, write_tokenizer
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
        records = read_records(data, images)
        book = QuestionBook(records, images)
        others = read_unlabelled(unlabelled, recipe.config["vision_config"]["image_size"])
        _write_frame(work, recipe, records, _origin(recipe, seed=seed, data=data, unlabelled=others))
        torch.manual_seed(seed)
        checkpoint = Checkpoint(work)
        assets = read_assets(checkpoint)
        model = build_model(checkpoint.config)
        precision = choose_precision(recipe.precision)
        loop = Loop(
            accelerator=Accelerator(cpu=True, mixed_precision=precision),  # the recipe is made for two cores
            gradient_norm=recipe.gradient_norm,
            log=work / LOG_FILE,
        )
        pictures = [preprocess(open_picture(facts.picture), assets.preprocessing) for facts in book.facts]
        pixels = torch.stack([torch.from_numpy(picture) for picture in pictures])
        _teach_tower(model, recipe, book, pixels, others, seed=seed, loop=loop)
        for index, stage in enumerate(recipe.stages):
            batches = _Batches(stage, book, assets.text_tokenizer(), pixels, seed=seed + 1 + index)
            train_stage(
                model,
                stage,
                (partial(packed_loss, model, batch) for batch in batches),
                num_steps=count_steps(len(book.facts), stage),
                loop=loop,
            )
        _write_weights(model, work / FLAT_FILE)
        write_curve(work / LOG_FILE, work / CURVE_FILE)


def _teach_tower(
    model: TinyLlava,
    recipe: Recipe,
    book: QuestionBook,
    pixels: torch.Tensor,
    others: torch.Tensor,
    *,
    seed: int,
    loop: Loop,
) -> None:
    """Stage 0; what the teacher said, hundreds of megabytes, is gone when it is over."""
    names = sorted({facts.name for facts in book.facts})
    things = torch.tensor([names.index(facts.name) for facts in book.facts])
    generator = torch.Generator().manual_seed(seed)
    vision = model.config.vision
    views = look(
        load_teacher(),
        Drawn(pixels, things, others),
        recipe.distillation,
        side=vision.image_size // vision.patch_size,
        generator=generator,
        accelerator=loop.accelerator,
    )
    distil(model.vision_tower, views, recipe.distillation, generator=generator, loop=loop)


class _Batches:
    """Fresh questions about a fresh view of every picture, once an epoch.

    Args:
        stage: template, batch size, epochs.
        book: facts and wordings.
        tokenizer: of the model.
        pixels: [pictures, 3, height, width], in the order of the book's facts.
        seed: of order, views and wordings.
    """

    def __init__(
        self, stage: Stage, book: QuestionBook, tokenizer: TextTokenizer, pixels: torch.Tensor, *, seed: int
    ) -> None:
        self.stage, self.book, self.tokenizer, self.pixels = stage, book, tokenizer, pixels
        self.by_kind: dict[str, list[int]] = {}
        for index, facts in enumerate(book.facts):
            self.by_kind.setdefault(facts.kind, []).append(index)
        self.generator, self.rng = torch.Generator().manual_seed(seed), random.Random(seed)

    def __iter__(self) -> Iterator[PackedBatch]:
        for _ in range(self.stage.epochs):
            for chosen in shuffled(len(self.book.facts), self.generator, self.stage.batch_size):
                rows = [self._row(self.book.facts[index]) for index in chosen]
                yield pack(rows, self._views(chosen))

    def _views(self, chosen: Sequence[int]) -> torch.Tensor:
        """Augmented pictures; some with up to half of another of the same kind blended in.

        So a kind is not learned as a list of things: what lies between two birds is a bird too.
        """
        pixels = augment(self.pixels[chosen], self.generator)
        kin = [self.rng.choice(self.by_kind[self.book.facts[index].kind]) for index in chosen]
        others = augment(self.pixels[kin], self.generator)
        blended = torch.rand(len(kin), generator=self.generator) < self.stage.kin_share
        share = 0.5 * torch.rand(len(kin), generator=self.generator) * blended
        return torch.lerp(pixels, others, share[:, None, None, None])

    def _row(self, facts: Facts) -> list[Labelled]:
        captions = self.stage.template == "pretrain"
        asked = [self.book.caption(facts)] if captions else self.book.ask(facts, self.rng)
        template = template_named(self.stage.template)
        return [label_answers(self.tokenizer, template, turns) for turns in asked]


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
    work: Path, recipe: Recipe, records: Sequence[Mapping[str, Any]], origin: Mapping[str, Any]
) -> None:
    """Everything of the checkpoint but the weights."""
    config = dict(recipe.config)
    size = config["vision_config"]["image_size"]
    chat = template_named(recipe.stages[-1].template)
    write_json(work / "config.json", config)
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
    write_json(work / PROCESSOR_FILE, processor)
    sidecar = {
        "template": chat.name,
        "image_tokens": "token 0 dropped (strategy patch)",
        **origin,
    }
    write_json(work / SIDECAR_FILE, sidecar)
    rendered = [chat.render(place_markers([dialogue(record)], 1), end=IMAGE_MARKER) for record in records]
    texts = [text for prompt in rendered for text in prompt.split(IMAGE_MARKER)]
    write_tokenizer(
        texts, work, vocab_size=recipe.vocab_size, max_length=config["tokenizer_model_max_length"]
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
