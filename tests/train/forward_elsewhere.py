"""A forward of golden checkpoints on a device that is not the CPU, with tensors without values: python -m.

A tensor that is made on the CPU on the way meets one of the device, and torch refuses that. torch without
CUDA cannot trace "cuda" (no device guard); there torch's own stand-in for other makers' devices is taken.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from tests.golden import golden_checkpoint, shared_fixtures
from tinyllava_edge.model.vlm import TinyLlava
from tinyllava_edge.train.batches import FAULTS, Encoded, Sample
from tinyllava_edge.train.data import encode_conversation
from tinyllava_edge.train.model import TinyLlavaForTraining
from tinyllava_edge.train.options import FinetuneOptions
from tinyllava_edge.train.samples import open_samples, open_source

ON = "cuda:0" if torch.version.cuda else "privateuseone:0"
TURNS = [("<image>\nWhat?", "A cat."), ("Sure?", "Yes.")]


def main() -> None:
    """Print as JSON, for each name, the device of the loss, or the error."""
    if ON.startswith("private"):
        _setup_privateuseone_for_python_backend()
    found = {}
    for name in sys.argv[1:]:
        try:
            found[name] = _loss_device(name)
        except RuntimeError as error:
            found[name] = str(error)[:300]
    sys.stdout.write(json.dumps(found))


def _loss_device(name: str) -> str:
    options = FinetuneOptions(
        data=Path(),
        images=Path(),
        source=golden_checkpoint(name) / "model",
        sources=shared_fixtures() / "sources",
        allow_pickle=True,
    )
    source = open_source(options, options.source)
    samples = open_samples(source, options)
    ids, labels = encode_conversation(samples.tokenizer, samples.template, TURNS)
    side = samples.reader.how.image_size
    batch = samples.collator([Sample(Encoded(ids, labels, 0), [torch.zeros(3, side, side)])])
    model = TinyLlavaForTraining(TinyLlava(source.config))

    with FakeTensorMode(), torch.no_grad():
        _move(model)
        inputs = {key: _elsewhere(value) for key, value in batch.items() if key != FAULTS}
        loss: torch.Tensor = model(**inputs)["loss"]
        return str(loss.device)


def _elsewhere(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=ON)


def _move(model: torch.nn.Module) -> None:
    """As `to(ON)`, which real weights under this mode do not take."""
    moved: dict[int, Any] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                new = torch.nn.Parameter(_elsewhere(parameter), requires_grad=False)
                module._parameters[name] = moved.setdefault(id(parameter), new)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = _elsewhere(buffer)


if __name__ == "__main__":
    main()
