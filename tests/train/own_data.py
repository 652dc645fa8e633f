"""A user's data of a few conversations, and a checkpoint that trains in milliseconds a step."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from tests.tiny import write_tiny_checkpoint
from tinyllava_edge.train.batches import FAULTS
from tinyllava_edge.train.model import TinyLlavaForTraining
from tinyllava_edge.train.options import FinetuneOptions, LoraOptions, parse_tune
from tinyllava_edge.train.training_options import TrainingOptions

LORA = parse_tune("connector+llm=lora")
COLOURS = ("red", "green", "blue", "white", "black")


def write_own_data(folder: Path, *, count: int = 10) -> Path:
    """Write `data.json` and its pictures: every third record without a picture, every fourth of two turns."""
    records = []
    for index in range(count):
        colour = COLOURS[index % len(COLOURS)]
        record: dict[str, Any] = {"id": f"r{index}"}
        question = "What is two plus two?" if index % 3 == 0 else "<image>\nWhich colour is this?"
        if index % 3:
            Image.new("RGB", (20, 20), colour).save(folder / f"{index}.png")
            record["image"] = f"{index}.png"
        texts = [question, f"It is {colour}."] + (["Sure?", "Yes."] if index % 4 == 0 else [])
        record["conversations"] = [
            {"from": ("human", "gpt")[position % 2], "value": text} for position, text in enumerate(texts)
        ]
        records.append(record)
    (folder / "data.json").write_text(json.dumps(records))
    return folder / "data.json"


def write_messages(data: Path) -> Path:
    """Write the same as JSON lines of messages: text and picture in parts, a mark at the beginning."""
    lines = []
    for record in json.loads(data.read_text()):
        messages = []
        for message in record.pop("conversations"):
            text = message["value"].removeprefix("<image>\n")
            parts = [{"type": "image"}] * (text != message["value"]) + [{"type": "text", "text": text}]
            role = {"human": "user", "gpt": "assistant"}[message["from"]]
            messages.append({"role": role, "content": parts})
        lines.append(json.dumps({**record, "messages": messages}))
    path = data.with_suffix(".jsonl")
    path.write_bytes(("\ufeff" + "\r\n".join(lines)).encode())
    return path


def write_small_checkpoint(directory: Path) -> Path:
    """A checkpoint with narrow layers, so that most of a step is not arithmetic."""
    return write_tiny_checkpoint(
        directory,
        hidden=32,
        layers=1,
        intermediate=64,
        image_size=28,
        vision_hidden=32,
        vision_layers=2,
        vision_intermediate=64,
    )


def own_options(folder: Path, source: Path, **changes: Any) -> FinetuneOptions:
    """Options for the data that `write_own_data` wrote; `changes` of them, and of the training's."""
    values: dict[str, Any] = {
        "data": folder / "data.json",
        "images": folder,
        "source": source,
        "lora": LoraOptions(rank=4, alpha=8),
        "per_device_train_batch_size": 3,
        "precision": "fp32",
        "learning_rate": 3e-3,
        **changes,
    }
    names = {field.name for field in fields(TrainingOptions)}
    training = TrainingOptions(**{name: values.pop(name) for name in names & values.keys()})
    return FinetuneOptions(training=training, **values)


def loss_of(model: TinyLlavaForTraining, batch: dict[str, Any]) -> torch.Tensor:
    """The loss of a batch, as the Trainer asks for it."""
    return model(**{key: value for key, value in batch.items() if key != FAULTS})["loss"]  # type: ignore[no-any-return]


def changed(options: FinetuneOptions, **changes: Any) -> FinetuneOptions:
    """The same options with another training."""
    return replace(options, training=replace(options.training, **changes))
