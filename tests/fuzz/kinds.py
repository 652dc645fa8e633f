"""Every kind of file that a command reads: how it is damaged, and what then reads it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.fuzz import readers
from tests.fuzz.corpus import reseal
from tests.fuzz.damage_bytes import (
    Damage,
    archive_damaged,
    array_damaged,
    bytes_damaged,
    each_line,
    lines_damaged,
)
from tests.fuzz.damage_json import json_damaged, json_header_damaged, resealed
from tests.fuzz.damage_models import gguf_damaged, onnx_damaged, sentencepiece_damaged
from tinyllava_edge.manifest import digest_of

Reader = Callable[[Path], Any]


@dataclass(frozen=True)
class Kind:
    """One kind of input.

    Attributes:
        tree: folder of the corpus that is copied for each input.
        file: what is damaged in it.
        damage: how.
        read: a command's words, in which "{}" is the copy of the tree, or a function of that copy.
        seal: what is done to the copy afterwards.
    """

    tree: str
    file: str
    damage: Damage
    read: str | Reader
    seal: Callable[[Path], None] = lambda tree: None


def _with_digest(manifest: dict[str, Any]) -> dict[str, Any]:
    try:
        return {**manifest, "digest": digest_of(manifest)}
    except (ValueError, RecursionError):
        return manifest


def _in_bundle(file: str, damage: Damage, read: str | Reader) -> Kind:
    """A file of a bundle whose manifest is made true of it again."""
    return Kind("bundle", f"b/{file}", damage, read, lambda tree: reseal(tree / "b"))


_RUN = "run {}/b {}/p.png what? --max-tokens 3 --threads 1"
_RUN_IR = f"{_RUN} --runtime onnxruntime+openvino"
_VERIFY = "verify {}/b --threads 1"
_INSPECT = "inspect {}/ck --sources {} --json"
_EVAL = "eval {}/b --threads 1 --max-tokens 2 --json"
_TRAIN = (
    "train --from {}/ck --data {}/data/data.json -o {}/out --batch-size 2 --save-every 1 --precision fp32"
)
_ZIPPED = archive_damaged(bytes_damaged)

BUNDLES = {
    "manifest": Kind("bundle", "b/manifest.json", json_damaged, "inspect {}/b"),
    "manifest redone": Kind("bundle", "b/manifest.json", resealed(json_damaged, _with_digest), _RUN),
    "manifest prune": Kind(
        *("bundle", "b/manifest.json", resealed(json_damaged, _with_digest)),
        "prune {}/b -o {}/out --vision fp32 --language f32",
    ),
    "graph": _in_bundle("vision/fp32.onnx", onnx_damaged, _RUN),
    "gguf": _in_bundle("language/f32.gguf", gguf_damaged, _RUN),
    "gguf inspect": Kind(
        "bundle", "b/language/f32.gguf", gguf_damaged, "inspect {}/b/language/f32.gguf --json"
    ),
    "ir": _in_bundle("language/ov_int8.xml", bytes_damaged, _RUN_IR),
    "ir weights": _in_bundle("language/ov_int8.bin", bytes_damaged, _RUN_IR),
    "tokenizer": _in_bundle("tokenizer.json", json_damaged, _RUN),
    "reference": _in_bundle("reference/reference.json", json_damaged, _VERIFY),
    "reference arrays": _in_bundle("reference/reference.npz", archive_damaged(array_damaged), _VERIFY),
    "reference picture": _in_bundle("reference/0.png", bytes_damaged, _VERIFY),
    "parity": Kind("bundle", "b/parity/onnxruntime+llamacpp.json", json_damaged, readers.read_parities),
    "parity of export": Kind("bundle", "b/parity/export.json", json_damaged, readers.read_parities),
    "parity on a card": Kind("bundle", "b/parity/onnxruntime+llamacpp.json", json_damaged, "card {}/b"),
    "parity of export on a card": Kind("bundle", "b/parity/export.json", json_damaged, "card {}/b"),
    "manifest on a card": Kind(
        "bundle", "b/manifest.json", resealed(json_damaged, _with_digest), "card {}/b -o {}/card"
    ),
    "remembered hashes": Kind(
        "bundle", "cache/tinyllava-edge/verified.json", json_damaged, readers.with_cache
    ),
}
CHECKPOINTS = {
    "config": Kind("flat", "ck/config.json", json_damaged, _INSPECT),
    "config loaded": Kind("flat", "ck/config.json", json_damaged, readers.load_weights),
    "config legacy": Kind("legacy", "ck/config.json", json_damaged, _INSPECT),
    "config legacy tower": Kind("legacy", "ck/vision_tower/config.json", json_damaged, _INSPECT),
    "config llava": Kind("llava", "ck/config.json", json_damaged, _INSPECT),
    "config line": Kind("line", "ck/config.json", json_damaged, _INSPECT),
    "config line loaded": Kind("line", "ck/config.json", json_damaged, readers.load_weights),
    "config projector": Kind("projector", "ck/config.json", json_damaged, readers.read_for_export),
    "config of the base": Kind(
        "projector", "lmsys/vicuna-tiny/config.json", json_damaged, readers.load_weights
    ),
    "projector": Kind("projector", "ck/mm_projector.bin", _ZIPPED, readers.load_weights),
    "projector inspect": Kind("projector", "ck/mm_projector.bin", _ZIPPED, f"{_INSPECT} --allow-pickle"),
    "config nanovlm": Kind("nanovlm", "ck/config.json", json_damaged, readers.read_for_export),
    "weights nanovlm": Kind("nanovlm", "ck/model.safetensors", json_header_damaged, readers.load_weights),
    "sidecar": Kind("flat", "ck/tinyllava_edge.json", json_damaged, _INSPECT),
    "preprocessor": Kind("flat", "ck/preprocessor_config.json", json_damaged, readers.read_for_export),
    "weights": Kind("flat", "ck/model.safetensors", json_header_damaged, readers.load_weights),
    "weights inspect": Kind("legacy", "ck/model.safetensors", json_header_damaged, _INSPECT),
    "index": Kind("sharded", "ck/model.safetensors.index.json", json_damaged, readers.load_weights),
    "pickle": Kind("folders", "ck/connector/pytorch_model.bin", _ZIPPED, readers.load_weights),
    "pickle inspect": Kind(
        "folders", "ck/language_model/pytorch_model.bin", _ZIPPED, f"{_INSPECT} --allow-pickle"
    ),
    "adapter": Kind("lora", "ck/adapter_config.json", json_damaged, readers.load_weights),
    "adapter weights": Kind(
        "lora", "ck/adapter_model.safetensors", json_header_damaged, readers.load_weights
    ),
    "sentencepiece": Kind("flat", "ck/tokenizer.model", sentencepiece_damaged, readers.read_for_export),
    "sentencepiece legacy": Kind("legacy", "ck/tokenizer.model", sentencepiece_damaged, _INSPECT),
    "vocabulary": Kind("bytes", "ck/vocab.json", json_damaged, readers.read_for_export),
    "merges": Kind("bytes", "ck/merges.txt", lines_damaged, readers.read_for_export),
    "added tokens": Kind("bytes", "ck/added_tokens.json", json_damaged, readers.read_for_export),
    "tokenizer settings": Kind("bytes", "ck/tokenizer_config.json", json_damaged, readers.read_for_export),
    "tokenizer roles": Kind("flat", "ck/special_tokens_map.json", json_damaged, readers.read_for_export),
    "tokenizer of checkpoint": Kind("json", "ck/tokenizer.json", json_damaged, readers.read_for_export),
}
TRAINING = {
    "training data": Kind("train", "data/data.json", json_damaged, readers.read_training),
    "recipe": Kind("train", "recipe.yaml", bytes_damaged, readers.read_recipe),
    "recipe lines": Kind("train", "recipe.yaml", lines_damaged, readers.read_recipe),
    "training lines": Kind("train", "data/data.jsonl", each_line(json_damaged), readers.read_training_lines),
    "training list": Kind("train", "data/data.json", bytes_damaged, readers.read_training),
    "training picture": Kind("train", "data/1.png", bytes_damaged, readers.read_training),
    "run facts": Kind("train", "out.work/run.json", json_damaged, f"{_TRAIN} --resume"),
    "run log": Kind("train", "out.work/training_log.jsonl", each_line(json_damaged), f"{_TRAIN} --resume"),
    "snapshot": Kind("train", "out.work/checkpoint-1/optimizer.pt", _ZIPPED, readers.resume_resealed),
    "snapshot state": Kind(
        "train", "out.work/checkpoint-1/trainer_state.json", json_damaged, readers.resume_resealed
    ),
    "snapshot seal": Kind("train", "out.work/checkpoint-1/seal.json", json_damaged, f"{_TRAIN} --resume"),
    "tower": Kind("train", "tower/config.json", json_damaged, readers.assemble_parts),
    "language model": Kind("train", "llm/config.json", json_damaged, readers.assemble_parts),
}
QUESTIONS = {
    "questions": Kind(
        "eval", "q.json", json_damaged, f"{_EVAL} --questions {{}}/q.json --images {{}}/images"
    ),
    "questions talks": Kind(
        *("eval", "talks.json", json_damaged, f"{_EVAL} --questions {{}}/talks.json --images {{}}/images")
    ),
    "questions lines": Kind(
        *(
            "eval",
            "q.jsonl",
            each_line(json_damaged),
            f"{_EVAL} --questions {{}}/q.jsonl --images {{}}/images",
        )
    ),
    "questions table": Kind(
        *("eval", "q.tsv", lines_damaged, f"{_EVAL} --questions {{}}/q.tsv --images {{}}/images --blind")
    ),
    "questions of MME": Kind(
        *("eval", "count.txt", lines_damaged),
        f"{_EVAL} --questions {{}}/count.txt --images {{}}/images --blind",
    ),
    "references": Kind(
        *("eval", "vqa.json", json_damaged),
        f"{_EVAL} --questions {{}}/q.json --images {{}}/images --references {{}}/vqa.json --blind",
    ),
    "pope": Kind(
        *("eval", "pope/llava_pope_test.jsonl", each_line(json_damaged)),
        f"{_EVAL} --benchmark pope --data {{}}/pope",
    ),
    "pope labels": Kind(
        *("eval", "pope/coco/coco_pope_random.json", each_line(json_damaged)),
        f"{_EVAL} --benchmark pope --data {{}}/pope",
    ),
    "textvqa": Kind(
        *("eval", "textvqa/llava_textvqa_val_v051_ocr.jsonl", each_line(json_damaged)),
        f"{_EVAL} --benchmark textvqa --data {{}}/textvqa",
    ),
    "textvqa answers": Kind(
        *("eval", "textvqa/TextVQA_0.5.1_val.json", json_damaged),
        f"{_EVAL} --benchmark textvqa --data {{}}/textvqa",
    ),
    "questions of MMMU": Kind(
        *("eval", "mmmu/anns_for_eval.json", json_damaged),
        f"{_EVAL} --benchmark mmmu --data {{}}/mmmu --max-tokens 2",
    ),
    "answers of MMMU": Kind(
        *("eval", "mmmu/answer_dict_val.json", json_damaged),
        f"{_EVAL} --benchmark mmmu --data {{}}/mmmu --max-tokens 2",
    ),
    "answers merged": Kind(
        *("eval", "answers.jsonl", each_line(json_damaged)),
        f"{_EVAL} --questions {{}}/q.json --images {{}}/images --no-blind --merge {{}}/answers.jsonl",
    ),
    "answers compared": Kind(
        *("eval", "answers.jsonl", each_line(json_damaged)),
        "eval compare {}/answers.jsonl {}/others.jsonl --json",
    ),
}
REPORTS = {
    "report": Kind("bench", "a/report.json", json_damaged, "bench compare {}/a {}/b --force"),
    "report second": Kind("bench", "b/report.json", json_damaged, "bench compare {}/a {}/b --force --json"),
    "report on a card": Kind("bench", "a/report.json", json_damaged, "card nano --bench {}/a"),
    "scores on a card": Kind("bench", "scores.json", json_damaged, "card nano --eval {}/scores.json --json"),
    "report in README": Kind("bench", "a/report.json", json_damaged, readers.measured),
}
ENGINES = {
    "engine record": Kind("engines", readers.RECORD, json_damaged, readers.read_engines),
    "engine choice": Kind("engines", readers.CHOICE, json_damaged, readers.read_engines),
    "engine": Kind("engines", readers.PLAN, bytes_damaged, readers.read_engines),
    "pack": Kind("engines", "engine.pack", bytes_damaged, readers.read_pack),
    "pack signed": Kind(
        "engines", "engine.pack", readers.signed_again(json_damaged), readers.read_signed_pack
    ),
    "key": Kind("engines", "owner", bytes_damaged, readers.sign_with_key),
    "public key": Kind("engines", "owner.pub", bytes_damaged, readers.read_pack),
}
PICTURES = {
    f"picture {name}": Kind("pictures", name, bytes_damaged, readers.see(name))
    for name in (
        *(
            "a.png",
            "grey.png",
            "few.png",
            "a.jpg",
            "four.jpg",
            "a.webp",
            "a.bmp",
            "a.gif",
            "a.tif",
            "grey.tif",
            "a.ppm",
            "a.avif",
        ),
    )
}
KINDS: dict[str, Kind] = {
    **BUNDLES,
    **CHECKPOINTS,
    **TRAINING,
    **QUESTIONS,
    **REPORTS,
    **ENGINES,
    **PICTURES,
}
