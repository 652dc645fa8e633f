"""Exact-match accuracy of a checkpoint on questions with short answers, by greedy decoding in torch.

python -m tinyllava_edge.train.score CHECKPOINT QUESTIONS.json --images DIR [--blind]
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from tinyllava_edge.checkpoint.names import checkpoint_path
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.console import print_json
from tinyllava_edge.model.assets import Assets, read_assets
from tinyllava_edge.model.vlm import TinyLlava, load_model

from .data import PictureReader, read_conversations, read_records

_BATCH = 64


@torch.no_grad()
def answer(
    model: TinyLlava, assets: Assets, questions: Sequence[str], pixels: torch.Tensor, *, max_tokens: int = 16
) -> list[str]:
    """Greedy answers to one question about each picture, all at once."""
    tokenizer = assets.text_tokenizer()
    rows = [
        model.splice(tokenizer.encode(assets.template, [(question, None)]), picture[None])
        for question, picture in zip(questions, model.encode(pixels), strict=True)
    ]
    masks = [torch.ones(len(row), dtype=torch.long) for row in rows]
    pad = torch.nn.utils.rnn.pad_sequence
    generate: Any = model.language_model.generate
    generated = generate(
        inputs_embeds=pad(rows, batch_first=True, padding_side="left"),
        attention_mask=pad(masks, batch_first=True, padding_side="left"),
        do_sample=False,
        max_new_tokens=max_tokens,
        eos_token_id=list(assets.stop_ids),
        pad_token_id=assets.eos_id,
    )
    return [tokenizer.decode(ids).strip() for ids in generated.tolist()]


def score(
    model: TinyLlava, assets: Assets, questions: Path, images: Path, *, blind: bool = False
) -> dict[str, float]:
    """Share of exactly right answers, for every question type and over all.

    Args:
        model: a loaded checkpoint.
        assets: its tokenizer and preprocessing.
        questions: LLaVA JSON of single questions; a record's `type` names its group.
        images: folder that the image paths are relative to.
        blind: show mid-grey instead of the pictures.
    """
    types = [str(record.get("type", "all")) for record in read_records(questions)]
    conversations = read_conversations(questions, images)
    reader = PictureReader(assets.preprocessing)
    right: dict[str, list[bool]] = defaultdict(list)
    for start in range(0, len(conversations), _BATCH):
        batch = conversations[start : start + _BATCH]
        pixels = reader.read([c.picture for c in batch if c.picture is not None])
        if blind:
            pixels = torch.zeros_like(pixels)
        answers = answer(model, assets, [c.turns[0][0] for c in batch], pixels)
        for type_, conversation, text in zip(types[start:], batch, answers, strict=False):
            right[type_].append(text == conversation.turns[0][1])
    everything = [hit for hits in right.values() for hit in hits]
    return {name: sum(hits) / len(hits) for name, hits in [*sorted(right.items()), ("all", everything)]}


def main(
    checkpoint: Annotated[str, typer.Argument(help="Checkpoint directory, or nano.")],
    questions: Annotated[Path, typer.Argument(help="LLaVA JSON of single questions.")],
    images: Annotated[Path, typer.Option(help="Folder that the image paths are relative to.")],
    blind: Annotated[bool, typer.Option("--blind", help="Show mid-grey instead of the pictures.")] = False,
) -> None:
    """Print the accuracy by question type as one line of JSON."""
    source = Checkpoint(checkpoint_path(checkpoint))
    assets = read_assets(source)
    print_json(score(load_model(source), assets, questions, images, blind=blind))


if __name__ == "__main__":
    typer.run(main)
