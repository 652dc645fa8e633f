"""The stages of the conformance table: what a golden checkpoint must give, and what we give.

Each function asserts, and returns what the table shows. Tolerances are the fixtures' own (their README).
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from transformers import DynamicCache

from tests.golden import golden_checkpoint, shared_fixtures
from tinyllava_edge.benchmarks.verify.gguf_files import read_facts, read_tensor
from tinyllava_edge.checkpoint.config import IMAGE_TOKEN_ID
from tinyllava_edge.image import open_picture, preprocess
from tinyllava_edge.model.language_model import continued_logits
from tinyllava_edge.model.vlm import TinyLlava
from tinyllava_edge.runtimes.model import Model

Floats = npt.NDArray[np.float32]
VISION_TOLERANCE = 1e-4
TORCH_LOGITS_NMSE = 1e-10
QUANTIZED_HEADING = "## Through `verify`, at f16 and Q8_0"  # a section that another test writes
Row = dict[str, str]


@dataclass(frozen=True)
class Golden:
    """One golden checkpoint: what upstream's classes gave."""

    name: str
    folder: Path
    facts: dict[str, Any]
    arrays: dict[str, Floats]

    @classmethod
    def read(cls, name: str) -> "Golden":
        """Skips the test where it is not at hand."""
        folder = golden_checkpoint(name)
        with np.load(folder / "golden.npz") as file:
            return cls(name, folder, json.loads((folder / "golden.json").read_text()), dict(file))

    @property
    def pictures(self) -> list[Path]:
        return [shared_fixtures() / "images" / picture for picture in self.facts["images"]]

    def turns(self, prompt: str) -> list[Any]:
        return [tuple(turn) for turn in self.facts["prompts"][prompt]["turns"]]

    def ids(self, prompt: str) -> list[int]:
        return [int(token) for token in self.arrays[f"prompt/{prompt}/input_ids"].ravel()]

    def tower(self, index: int) -> Floats:
        """Rows of the tower; of a mixture of features those of both, one after the other."""
        keys = [f"image{index}/vision{half}" for half in ("", "_clip", "_dinov2")]
        return np.concatenate([self.arrays[key] for key in keys if key in self.arrays])


def check_ids(golden: Golden, model: Model) -> str:
    """Prompts as strings and as ids."""
    conversations = golden.facts.get("tokenized_conversations", {})
    for facts in conversations.values():
        assert model.tokenize([tuple(turn) for turn in facts["turns"]]) == facts["input_ids"]
    for prompt in golden.facts["prompts"]:
        assert model.tokenize(golden.turns(prompt)) == golden.ids(prompt)
    return f"{len(conversations) + len(golden.facts['prompts'])} equal"


def check_pixels(golden: Golden, model: Model) -> tuple[Floats, str]:
    """Every picture, to the bit."""
    how = model.bundle.manifest.vision.preprocessing
    pixels = np.stack([preprocess(open_picture(picture), how) for picture in golden.pictures])
    for index, own in enumerate(pixels):
        np.testing.assert_array_equal(own, golden.arrays[f"image{index}/pixel_values"])
    return pixels, "exact"


def onnx_vision(model: Model, pixels: Floats) -> tuple[Floats, Floats]:
    """Features and embeddings of the bundle's float32 graph."""
    bundle = model.bundle
    graph = onnx.load(bundle.path(bundle.variant("vision", "fp32").files[0]))
    (tap,) = [v for v in graph.graph.value_info if v.name == bundle.manifest.vision.tower_output]
    graph.graph.output.append(tap)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    embeddings, features = session.run(None, {"pixels": pixels})
    return features, embeddings


@torch.no_grad()
def torch_vision(model: TinyLlava, pixels: Floats) -> tuple[Floats, Floats]:
    """Features and embeddings of the reference."""
    features = model.vision_tower(torch.from_numpy(pixels))
    return features.numpy(), model.connector(features).numpy()


def check_vision(golden: Golden, features: Floats, embeddings: Floats) -> Row:
    """Largest absolute difference of the tower's and the connector's rows."""
    tower = max(_difference(features[i], golden.tower(i)) for i in range(len(golden.pictures)))
    connector = max(
        _difference(embeddings[i], golden.arrays[f"image{i}/connector"]) for i in range(len(golden.pictures))
    )
    assert max(tower, connector) <= VISION_TOLERANCE
    return {"tower": f"{tower:.1e}", "connector": f"{connector:.1e}"}


def check_embeddings(golden: Golden, text_rows: Floats, picture_rows: Floats) -> str:
    """Spliced rows of every prompt: text from the embedding table, pictures in the place of each -200."""
    stored = {
        p: f for p, f in golden.facts["prompts"].items() if f"prompt/{p}/inputs_embeds" in golden.arrays
    }
    if not stored:
        return "not stored"
    worst = 0.0
    for prompt, facts in stored.items():
        pictures = iter(facts["images"])
        rows = [
            picture_rows[next(pictures)] if token == IMAGE_TOKEN_ID else text_rows[token : token + 1]
            for token in golden.ids(prompt)
        ]
        expected = golden.arrays[f"prompt/{prompt}/inputs_embeds"]
        worst = max(worst, _difference(np.concatenate(rows), expected.reshape(-1, expected.shape[-1])))
    assert worst <= VISION_TOLERANCE
    return f"{worst:.1e}"


def gguf_rows(model: Model) -> Floats:
    """The embedding table of the bundle's float32 file."""
    path = model.bundle.path(model.bundle.variant("language", "f32").files[0])
    return read_tensor(path, "token_embd.weight")[1]


def check_logits(golden: Golden, logits_of: Callable[[str], Floats], gate: float) -> tuple[float, str]:
    """Largest difference of a logit, and the NMSE of the worst prompt."""
    largest = worst = 0.0
    for prompt in golden.facts["prompts"]:
        found = logits_of(prompt)
        keys = [f"prompt/{prompt}/{kind}" for kind in ("logits", "tail_logits", "last_logits")]
        expected = golden.arrays[next(key for key in keys if key in golden.arrays)]
        expected = expected.reshape(-1, found.shape[1])
        difference = found[-len(expected) :].astype(np.float64) - expected
        worst = max(worst, float((difference**2).mean() / expected.var()))
        largest = max(largest, float(np.abs(difference).max()))
    assert worst <= gate
    return largest, f"{worst:.1e}"


def check_greedy(golden: Golden, greedy: Callable[[str, int], Sequence[int]], tolerance: float) -> str:
    """Greedy answers, up to the first step at which two tokens are as good as each other."""
    equal = total = 0
    for prompt in golden.facts["prompts"]:
        key = f"prompt/{prompt}/greedy_ids_no_eos"
        if key not in golden.arrays:
            continue
        expected = golden.arrays[key].ravel().tolist()
        margins = golden.arrays[f"prompt/{prompt}/greedy_margin_no_eos"].ravel()
        found = greedy(prompt, len(expected))
        total += 1
        different = [
            step for step, pair in enumerate(zip(found, expected, strict=True)) if pair[0] != pair[1]
        ]
        if different:
            assert margins[different[0]] < 2 * tolerance, f"{prompt}: differs at token {different[0]}"
        equal += not different
    assert equal
    return f"{equal} of {total} equal"


@torch.no_grad()
def torch_greedy(model: TinyLlava, ids: list[int], pictures: torch.Tensor, count: int) -> list[int]:
    """Tokens one by one behind a cache."""
    cache = DynamicCache()
    rows, answer = model.splice(ids, pictures), list[int]()
    for _ in range(count):
        logits = continued_logits(model.language_model, rows[None], cache)
        answer.append(int(logits[0, -1].argmax()))
        rows = model.splice(answer[-1:], pictures[:0])
    return answer


def bundle_greedy(
    model: Model, ids: list[int], pictures: list[Path], count: int, never: Sequence[int] = ()
) -> list[int]:
    """Tokens one by one through the backends themselves; `never` are not chosen."""
    embeddings = iter(model.encode(pictures)) if pictures else iter(())
    model.language.truncate(0)
    position = start = 0
    for index, token in enumerate([*ids, IMAGE_TOKEN_ID]):
        if token != IMAGE_TOKEN_ID:
            continue
        pieces: list[Any] = [np.array(ids[start:index], dtype=np.int32)] if index > start else []
        pieces += [next(embeddings)] if index < len(ids) else []
        for piece in pieces:
            model.language.evaluate(piece, position)
            position += len(piece)
        start = index + 1
    answer: list[int] = []
    for _ in range(count):
        logits = model.language.last_logits().copy()
        logits[list(never)] = -np.inf
        answer.append(int(logits.argmax()))
        model.language.evaluate(np.array(answer[-1:], dtype=np.int32), position)
        position += 1
    model.language.truncate(0)
    return answer


def check_metadata(golden: Golden, path: Path) -> str:
    """Every hyperparameter in the file is that of the config which upstream resolved."""
    config = golden.facts.get("resolved_text_config") or json.loads(
        (golden.folder / "model" / "config.json").read_text()  # of TinyLLaVABench, which leaves nothing out
    )
    facts = read_facts(path)
    name = facts["general.architecture"]
    expected = _openelm_metadata(config) if "model_dim" in config else _usual_metadata(config)
    found = {key: facts.get(f"{name}.{key}") for key in expected}
    assert found == expected
    assert facts["tokenizer.ggml.eos_token_id"] == golden.facts["tokenizer"]["eos"]
    return f"{len(expected) + 1} equal"


def _usual_metadata(config: dict[str, Any]) -> dict[str, Any]:
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    rms = "rms_norm_eps" in config
    epsilon = config["rms_norm_eps"] if rms else config["layer_norm_eps"]
    return {
        "vocab_size": config["vocab_size"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": heads,
        "attention.head_count_kv": config.get("num_key_value_heads") or heads,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "rope.freq_base": float(np.float32(config["rope_theta"])),
        "rope.dimension_count": int(head_dim * config.get("partial_rotary_factor", 1.0)),
        f"attention.layer_norm{'_rms' if rms else ''}_epsilon": float(np.float32(epsilon)),
    }


def _openelm_metadata(config: dict[str, Any]) -> dict[str, Any]:
    return {
        "vocab_size": config["vocab_size"],
        "context_length": config["max_context_length"],
        "embedding_length": config["model_dim"],
        "block_count": config["num_transformer_layers"],
        "attention.head_count": config["num_query_heads"],
        "attention.head_count_kv": config["num_kv_heads"],
        "attention.key_length": config["head_dim"],
        "attention.value_length": config["head_dim"],
        "rope.freq_base": float(config["rope_freq_constant"]),
        "rope.dimension_count": config["head_dim"],
        "attention.layer_norm_rms_epsilon": float(np.float32(1e-6)),  # a constant of its code
    }


def _difference(found: Floats, expected: Floats) -> float:
    return float(np.abs(found - expected).max())
