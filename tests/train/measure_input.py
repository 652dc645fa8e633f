"""How many batches the input gives in a second: `python -m tests.train.measure_input`.

The Trainer's own loader: two workers, batches of 8 conversations of five turns about a picture of 384 px
(728 positions), from a file as large as LLaVA's mix. Pictures are not decoded: each is the same zeros. The
vocabulary has 420 words, so that a conversation has many more tokens than with a real one.
"""

import json
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from tests.tiny import write_tiny_checkpoint
from tests.train.measure_start import ROWS, write_rows
from tests.train.own_data import own_options
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.model.vlm import load_model
from tinyllava_edge.train.data import PictureReader
from tinyllava_edge.train.fit import training_arguments
from tinyllava_edge.train.model import TinyLlavaForTraining
from tinyllava_edge.train.records import read_data
from tinyllava_edge.train.run_records import Numbered
from tinyllava_edge.train.samples import open_samples
from tinyllava_edge.train.trainer import TinyLlavaTrainer

BATCH, WORKERS, SIDE = 8, 2, 384
FIRST = 20  # batches while the workers start


def measure_input(folder: Path, *, rows: int = ROWS, batches: int = 300) -> dict[str, Any]:
    """Batches of 8 a second, the first ones aside."""
    torch.set_num_threads(1)
    data = write_rows(folder, rows)[1]
    source = write_tiny_checkpoint(folder / "ck", image_size=SIDE, hidden=32, layers=1)
    options = own_options(
        folder,
        source,
        data=data,
        model_max_length=4096,
        per_device_train_batch_size=BATCH,
        dataloader_num_workers=WORKERS,
        save_steps=0,
    )
    found = read_data(options)
    samples = open_samples(Checkpoint(source), options)
    samples.conversations = Numbered(found, range(len(found)), samples.left_out)
    trainer = TinyLlavaTrainer(
        TinyLlavaForTraining(load_model(Checkpoint(source))),
        samples,
        options,
        folder,
        args=training_arguments(options, folder, [], has_validation=False),
    )
    zeros = torch.zeros(3, SIDE, SIDE)
    with patch.object(PictureReader, "read", lambda *_: zeros):
        loader = iter(trainer.get_train_dataloader())
        shapes = {tuple(batch["pixel_values"].shape) for batch in islice(loader, FIRST)}
        began, positions = time.monotonic(), 0
        for batch in islice(loader, batches):
            positions += int(batch["input_ids"].numel())
            shapes.add(tuple(batch["pixel_values"].shape))
        seconds = time.monotonic() - began
    assert shapes == {(BATCH, 3, SIDE, SIDE)}
    return {
        "rows": len(found),
        "picture_positions": samples.num_tokens,
        "positions_of_a_conversation": round(positions / batches / BATCH),
        "batches": batches,
        "batches_per_second": round(batches / seconds, 1),
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        sys.stdout.write(json.dumps(measure_input(Path(place))) + "\n")
