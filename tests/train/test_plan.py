"""What a run needs, said before it: against peaks that are measured, counts by hand, and saved tensors."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from tests.train.measure_plan import CASES
from tinyllava_edge.checkpoint.config import ModelConfig
from tinyllava_edge.checkpoint.llava_line import KNOWN_TOWERS
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.checkpoint.read_config import model_config
from tinyllava_edge.cli import app
from tinyllava_edge.errors import UsageError
from tinyllava_edge.memory import anonymous_bytes, return_freed_memory, return_large_blocks, watched_memory
from tinyllava_edge.model.vlm import TinyLlava, build_model
from tinyllava_edge.train.fake_step import build_fake, take_step
from tinyllava_edge.train.model import TinyLlavaForTraining
from tinyllava_edge.train.options import FinetuneOptions, parse_tune
from tinyllava_edge.train.plan import _course, make_plan
from tinyllava_edge.train.training_options import TrainingOptions

SIGLIP = KNOWN_TOWERS["google/siglip-so400m-patch14-384"]
PHI = {
    "model_type": "phi",
    "vocab_size": 51200,
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "partial_rotary_factor": 0.4,
}


def config_of(text: dict[str, Any], vision: dict[str, Any]) -> ModelConfig:
    raw = {
        "model_type": "tinyllava",
        "connector_type": "mlp2x_gelu",
        "text_config": text,
        "vision_config": vision,
        "tokenizer_model_max_length": 2048,
    }
    return model_config(raw, Path("absent"))


SMALL = config_of(
    {"model_type": "llama", "vocab_size": 450, "hidden_size": 256, "intermediate_size": 768,
     "num_hidden_layers": 2, "num_attention_heads": 4},
    {**SIGLIP, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
     "image_size": 56},
)  # fmt: skip


def _freeze_tower(model: TinyLlava) -> None:
    model.vision_tower.requires_grad_(False)


def options_of(tune: str = "connector+llm", **training: Any) -> FinetuneOptions:
    return FinetuneOptions(
        data=Path("d"),
        images=Path("i"),
        source=Path("s"),
        tune=parse_tune(tune),
        training=TrainingOptions(**{"precision": "fp32", **training}),
    )


def test_a_step_takes_the_memory_that_is_planned() -> None:
    """In a process of its own: here other tests have left memory that the allocator hands out again."""
    line = [sys.executable, "-W", "ignore", "-c", f"from {__name__} import print_a_step; print_a_step()"]
    found = json.loads(subprocess.run(line, capture_output=True, text=True, check=True).stdout)
    if found is None:
        pytest.skip("this system does not tell")
    assert found["planned"] == pytest.approx(found["measured"], rel=0.15)


def print_a_step() -> None:
    """Plan and peak, bytes, of two real steps of AdamW; null where the system does not tell."""
    batch, positions = 8, 256
    plan = make_plan(SMALL, options_of(per_device_train_batch_size=batch), rows=None, positions=positions)
    return_large_blocks()
    return_freed_memory()
    before = anonymous_bytes(os.getpid())
    if before is None:
        sys.stdout.write("null")
        return
    with watched_memory() as watch:
        model = build_model(SMALL)
        model.vision_tower.requires_grad_(False)
        training = TinyLlavaForTraining(model.train())
        rows = SMALL.vision.num_tokens
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
        ids = torch.zeros(batch, positions, dtype=torch.long)
        ids[:, :rows] = -200
        watch.peak_bytes()
        for _ in range(2):
            loss = training(
                input_ids=ids,
                labels=torch.zeros(batch, positions, dtype=torch.long),
                learned=torch.arange(batch * (positions - rows - 1)),
                pixel_values=torch.zeros(batch, 3, 56, 56),
                picture_rows=torch.arange(batch * rows),
            )["loss"]
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        peak = watch.peak_bytes()
    assert peak is not None
    sys.stdout.write(json.dumps({"planned": plan.memory_bytes["total"], "measured": peak - before}))


@pytest.mark.long
@pytest.mark.parametrize("case", CASES)
def test_a_whole_run_takes_the_memory_that_is_planned(case: str) -> None:
    """`finetune` itself, the Trainer and its loader within, in a process of its own."""
    line = [sys.executable, "-W", "ignore", "-m", "tests.train.measure_plan", case]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["planned"] == pytest.approx(found["measured"], rel=0.15)


def test_weights_gradients_and_moments_are_counted() -> None:
    """Phi-2 and SigLIP: docs/sources/tinyllava.md#sizes has the parameters, 9,507,840 of the connector."""
    found = make_plan(
        config_of({**PHI, "num_hidden_layers": 1}, {**SIGLIP, "num_hidden_layers": 1}),
        options_of("connector", precision="bf16"),
        rows=558_128,
        positions=800,
        memory="80GB",
    )
    connector = 1152 * 2560 + 2560 + 2560 * 2560 + 2560
    assert found.trained_parameters == {"vision_tower": 0, "connector": connector, "language_model": 0}
    memory = found.memory_bytes
    assert (memory["gradients"], memory["optimizer"]) == (4 * connector, 8 * connector)
    assert memory["weights"]["connector"] == 4 * connector
    layer = 4 * (2560 * 2560 + 2560) + 2 * 2560 * 10240 + 10240 + 2560 + 2 * 2560
    ends = 2 * 51200 * 2560 + 51200 + 2 * 2560
    frequencies = 2 * 16 * 4  # float32, the original ones too
    assert memory["weights"]["language_model"] - 2 * (layer + ends) in (frequencies, frequencies // 2)
    assert (found.steps, found.warmup_steps) == (69_766, 2_093)
    assert found.largest_batch_size is not None


def test_the_law_holds_for_batches_that_it_was_not_measured_for() -> None:
    """Against a step of one and of nine conversations."""
    model = build_fake(SMALL, _freeze_tower)
    for batch in (1, 9):
        plan = make_plan(SMALL, options_of(per_device_train_batch_size=batch), rows=None, positions=200)
        exact = take_step(model.train(), batch=batch, positions=200, precision=None)
        memory = plan.memory_bytes
        peak = int((exact.activations + exact.gradients).max())
        assert memory["gradients"] + memory["activations"] == pytest.approx(peak, rel=0.02)


def test_flops_are_those_of_the_products() -> None:
    """6 for each weight and position of what is trained, 2 of the tower: nothing goes back through it."""
    model = build_fake(SMALL, _freeze_tower)
    step = take_step(model, batch=2, positions=200, precision=None)
    language = 2 * (4 * 256 * 256 + 3 * 256 * 768)
    attention = 2 * 2 * 200 * 200 * 256 * 2
    head = 450 * 256 * (200 - 15 - 1)
    tower = 2 * (4 * 64 * 64 + 2 * 64 * 128) * 16
    connector = (64 * 256 + 256 * 256) * 15
    expected = 2 * (6 * language * 200 + 3.5 * attention + 6 * head + 2 * tower + 6 * connector)
    assert step.flops == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize(("precision", "tune", "mib"), [
    (torch.bfloat16, "connector", 5.0),
    (torch.float16, "connector", 5.0),
    (torch.bfloat16, "connector+llm", 10.0),
])  # fmt: skip
def test_checkpointing_saves_one_row_of_hidden_values_a_position_and_layer(
    precision: torch.dtype, tune: str, mib: float
) -> None:
    """At Phi-2's width and 1,024 positions: 2,560 values of 16 bits, of 32 if it is trained."""
    saved = []
    for layers in (2, 3):
        config = config_of({**PHI, "num_hidden_layers": layers}, {**SIGLIP, "num_hidden_layers": 1})
        options = options_of(tune, precision={torch.float16: "fp16"}.get(precision, "bf16"))
        saved.append(_saved_bytes(config, options, precision, batch=1, positions=1024))
    assert (saved[1] - saved[0]) / 2**20 == pytest.approx(mib, rel=0.02)


def _saved_bytes(
    config: ModelConfig, options: FinetuneOptions, precision: torch.dtype, *, batch: int, positions: int
) -> int:
    """Bytes that forward keeps for backward, each storage once, weights left out."""
    from tinyllava_edge.train.plan import _as_trained

    model = build_fake(config, lambda model: _as_trained(model, options, precision))
    model.checkpoint_activations()
    weights = {parameter.untyped_storage() for parameter in model.parameters()}
    storages: dict[torch.UntypedStorage, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage() not in weights:
            storages[tensor.untyped_storage()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        take_step(model.train(), batch=batch, positions=positions, precision=precision, backward=False)
    return sum(storages.values())


def run(*words: object) -> Any:
    return CliRunner().invoke(app, ["train", "--plan", *map(str, words)])


def test_a_run_that_is_too_large_says_which_batch_fits(source: Path) -> None:
    line = ("--from", source, "--rows", 1000, "--precision", "fp32", "--max-length", 200)
    result = run(*line, "--memory", "20MB", "--batch-size", 64)
    assert isinstance(result.exception, UsageError)
    batch = int(str(result.exception).split("The largest that fits: --batch-size ")[1].split()[0].rstrip("."))
    assert run(*line, "--memory", "20MB", "--batch-size", batch).exit_code == 0
    assert run(*line, "--memory", "20MB", "--batch-size", batch + 1).exit_code != 0
    result = run(*line, "--memory", "1MB")
    assert "Not even one conversation fits" in str(result.exception)
    for words, said in (
        (("--memory", "much"), "is no size"),
        (("--memory", "9" * 400), "is no size"),
        (("--positions", 9999), "--positions is 9999, expected"),
        (("--tflops", 0), "--tflops is 0"),
    ):
        assert said in str(run(*line, *words).exception)
    assert "--rows is of --plan" in str(
        CliRunner().invoke(app, ["train", "--data", "d", "-o", "o", "--rows", "3"]).exception
    )


def test_a_run_of_one_step_has_no_warm_up() -> None:
    assert _course(options_of(max_steps=1), 10, 1) == {"steps": 1, "warmup_steps": 0}
    assert _course(options_of(max_steps=101), 10, 1) == {"steps": 101, "warmup_steps": 4}  # ceil(3.03)


def test_a_plan_of_a_recipe_counts_its_rows_and_reads_no_weights(source: Path, tmp_path: Path) -> None:
    for path in source.iterdir():
        if path.name != "model.safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "d.jsonl").write_text("{}\n" * 300)
    line = (
        "--recipe",
        "lora",
        "--from",
        tmp_path,
        "--data",
        tmp_path / "d.jsonl",
        "--gpus",
        2,
        "--precision",
        "fp32",
    )
    result = run(*line, "--max-length", 100, "--json")
    assert result.exit_code == 0, result.exception
    found = json.loads(result.stdout)
    assert (found["rows"], found["processes"], found["gradient_accumulation_steps"]) == (300, 2, 8)
    assert (found["steps"], found["warmup_steps"]) == (3, 1)
    assert found["memory_bytes"]["buckets"] == found["memory_bytes"]["gradients"]
    assert Checkpoint(tmp_path).config.language.architecture == "llama"
