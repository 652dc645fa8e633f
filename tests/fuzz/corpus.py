"""The files that are damaged: one good example of every file that a command reads, in trees that work.

bundle/    a bundle `b` with reference tensors and parity/, a picture, a cache
flat/, sharded/, folders/, lora/, legacy/, llava/, nanovlm/    a checkpoint `ck` of each layout
bytes/, json/    and of two more kinds of tokenizer
train/     data, checkpoint, an unfinished run `out.work`, a tower and a language model
eval/      questions in each form, pictures, answers of a run
bench/     two reports, and what eval printed
engines/   the engine cache, a pack and its keys
pictures/  a picture in each format
"""

import base64
import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from tests.benchmarks.evals.test_cli import write_textvqa
from tests.benchmarks.evals.test_public_sets import write_pope
from tests.integration.combinations import random_model
from tests.integration.layouts import write_config, write_weights
from tests.runtimes.bundles import llama_tokenizer, picture, write_bundle
from tests.runtimes.tiny_ir import write_tiny_ir
from tests.train.own_data import own_options, write_messages, write_own_data, write_small_checkpoint
from tinyllava_edge.bundle import MANIFEST_FILE, Bundle
from tinyllava_edge.checkpoint.names import bundle_path
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.cli import app
from tinyllava_edge.manifest import digest_of
from tinyllava_edge.model.vlm import load_model
from tinyllava_edge.parity_files import write_parity
from tinyllava_edge.prompt import Turn
from tinyllava_edge.reference_tensors import ReferencePrompt, ReferenceTensors, write_reference_tensors

ROOT = Path(__file__).parents[2]
_FIXTURES = ROOT / "tests" / "fixtures"


def build_corpus(folder: Path) -> str:
    """Write all trees; returns a hash of every file's name and content."""
    folder.mkdir(parents=True)
    _write_bundle(folder / "bundle")
    _write_checkpoints(folder)
    _write_training(folder / "train")
    _write_questions(folder / "eval")
    _write_reports(folder / "bench")
    _write_engines(folder / "engines")
    _write_pictures(folder / "pictures")
    digest = hashlib.sha256()
    for path in _hashed(folder):
        digest.update(f"{path.relative_to(folder)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


# Of each run: times, keys.
_NEVER_THE_SAME = ("training_log.jsonl", "out.work", "engines", "owner", "owner.pub", "engine.pack")


def _hashed(folder: Path) -> Iterator[Path]:
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if not set(path.relative_to(folder).parts) & set(_NEVER_THE_SAME):
            yield path


def reseal(root: Path) -> None:
    """Make a bundle's manifest true of its files again, as whoever changed them would."""
    path = root / MANIFEST_FILE
    manifest = json.loads(path.read_bytes())
    manifest["files"] = [
        {
            "path": (name := file.relative_to(root).as_posix()),
            "size": file.stat().st_size,
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        }
        for file in sorted(file for file in root.rglob("*") if file.is_file())
        if (name := file.relative_to(root).as_posix()) != MANIFEST_FILE and not name.startswith("parity/")
    ]
    path.write_text(json.dumps({**manifest, "digest": digest_of(manifest)}))


def _add_ir(root: Path) -> None:
    """The language model as an OpenVINO graph, too."""
    path = root / MANIFEST_FILE
    write_tiny_ir(root / "language" / "ov_int8.xml")
    files = ["language/ov_int8.xml", "language/ov_int8.bin"]
    variant = {"part": "language", "name": "ov_int8", "target": "openvino", "files": files}
    manifest = json.loads(path.read_bytes())
    manifest["variants"].append({**variant, "status": "verified"})
    path.write_text(json.dumps(manifest))
    reseal(root)


def _write_bundle(tree: Path) -> None:
    bundle = write_bundle(tree / "b")
    _add_ir(bundle.root)
    picture(0).save(tree / "p.png")
    (tree / "0.png").write_bytes((tree / "p.png").read_bytes())
    write_reference_tensors(bundle.root, _reference(bundle, tree / "0.png"))
    reseal(bundle.root)
    opened = Bundle.open(bundle.root)
    gate = {"metric": "mean_kld", "kind": "max", "limit": 1e-6}
    check = {"metric": "mean_kld", "value": 1e-6, "gate": gate, "passed": True}
    ladder = {"stage": "teacher_forced", "variant": "f32", "checks": [check]}
    variants = {"vision": ["fp32"], "language": ["f32"]}
    write_parity(opened, "onnxruntime+llamacpp", {"variants": variants, "stages": [ladder], "passed": True})
    island = {"nodes": ["/tower/MatMul"], "in_attention": True}
    figures = {"onnxruntime": {"nmse": 1e-12, "tower": {"nmse": 1e-13}}, "rounded": {"snr_db": 60.0}}
    vision = {"fp32": {"islands": [island], "largest": 40.0, **figures}}
    stored: dict[str, Any] = {"counts": {"f32": 9}, "fallback": [], "lowest_snr_db": None, "lowest_at": None}
    write_parity(opened, "export", {"vision": vision, "language": {"f32": stored}})
    cache = tree / "cache" / "tinyllava-edge"
    cache.mkdir(parents=True, mode=0o700)
    (cache / "verified.json").write_text(json.dumps({"1:2:3:4:5": "0" * 64}))
    (cache / "verified.json").chmod(0o600)


def _reference(bundle: Bundle, shown: Path) -> ReferenceTensors:
    """What the bundle itself computes."""
    from tinyllava_edge.image import open_picture, preprocess
    from tinyllava_edge.runtimes.model import open_bundle

    turns: tuple[Turn, ...] = (("the end", None),)
    with open_bundle(bundle, threads=1) as model:
        pixels = preprocess(open_picture(shown), bundle.manifest.vision.preprocessing)[None]
        embeddings = model.encode([shown])
        ids = model.tokenize(turns, num_pictures=1)
        logits = model.logits(turns, [shown])[-2:]
    positions = len(ids) + bundle.manifest.vision.num_tokens - 1
    prompt = ReferencePrompt(
        name="one",
        turns=turns,
        pictures=(0,),
        input_ids=tuple(ids),
        positions=positions,
        logit_positions=(positions - 2, positions - 1),
        greedy_ids=(5, 6),
        greedy_margins=(0.5, 0.5),
    )
    return ReferenceTensors(
        pictures=[shown],
        pixels=pixels,
        tower=embeddings,
        embeddings=embeddings,
        prompts=[prompt],
        logits={"one": np.asarray(logits)},
    )


def _write_checkpoints(folder: Path) -> None:
    flat = write_small_checkpoint(folder / "flat" / "ck")
    (flat / "tinyllava_edge.json").write_text(json.dumps({"template": "llama", "recipe": "full"}))
    config, model = json.loads((flat / "config.json").read_text()), load_model(Checkpoint(flat))
    for layout in ("sharded", "folders", "lora", "llava", "legacy"):
        checkpoint = Path(shutil.copytree(flat, folder / layout / "ck"))
        (checkpoint / "model.safetensors").unlink()
        write_config(checkpoint, config, layout)
        if layout == "legacy":  # whose loader leaves a tower's head and its last layer
            model = random_model(Checkpoint(checkpoint).config, seed=0)
        torch.manual_seed(0)
        write_weights(checkpoint, model, layout, torch.float32, 450)
    nano_vlm = _FIXTURES / "lines" / "nanovlm"
    shutil.copytree(nano_vlm / "global", folder / "nanovlm" / "ck")
    shutil.copytree(
        nano_vlm / "sources/tiny-random/smollm2-instruct", folder / "nanovlm" / "ck", dirs_exist_ok=True
    )
    for tree, name in (("line", "llava_llama-inside-pad"), ("projector", "llava_llama-stage1")):
        shutil.copytree(_FIXTURES / "lines" / "sources", folder / tree)
        shutil.copytree(_FIXTURES / "lines" / name / "model", folder / tree / "ck")
    json_only = Path(shutil.copytree(flat, folder / "json" / "ck"))
    (json_only / "tokenizer.model").unlink()
    (json_only / "tokenizer.json").write_text(llama_tokenizer(), encoding="utf-8")
    byte_level = folder / "bytes" / "ck"
    shutil.copytree(_FIXTURES / "checkpoints/qwen2-siglip-mlp2x-bf16-sharded/model", byte_level)
    for path in (_FIXTURES / "sources/tiny-random/siglip-so400m-patch14-tiny-a").glob("preprocessor*"):
        shutil.copy(path, byte_level)


def _write_training(tree: Path) -> None:
    from tinyllava_edge.train import training_log
    from tinyllava_edge.train.finetune import finetune
    from tinyllava_edge.train.recipe import FOLDER

    (tree / "data").mkdir(parents=True)
    write_messages(write_own_data(tree / "data", count=6))
    shutil.copy(FOLDER / "base-finetune.yaml", tree / "recipe.yaml")
    source = write_small_checkpoint(tree / "ck")
    write: Any = training_log.TrainingLog.write

    def stop(log: training_log.TrainingLog, **values: Any) -> None:
        write(log, **values)
        if values["step"] == 2:
            raise KeyboardInterrupt

    options = own_options(
        tree / "data", source, per_device_train_batch_size=2, save_steps=1, learning_rate=None
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_log.TrainingLog, "write", stop)
        with pytest.raises(KeyboardInterrupt):
            finetune(tree / "out", options)
    config = json.loads((source / "config.json").read_text())
    for name, key in (("tower", "vision_config"), ("llm", "text_config")):
        shutil.copytree(source, tree / name)
        (tree / name / "config.json").write_text(json.dumps(config[key]))


def _write_questions(tree: Path) -> None:
    (tree / "images").mkdir(parents=True)
    for index in range(3):
        picture(index).save(tree / "images" / f"{index}.png")
    plain = [
        {"id": index, "image": f"{index}.png", "question": "What is this?", "answer": "a", "type": "kind"}
        for index in range(3)
    ]
    talks = [
        {
            "id": "t",
            "image": "1.png",
            "conversations": [
                {"from": "human", "value": "<image>\nWhat is it?"},
                {"from": "gpt", "value": "the end"},
            ],
        }
    ]
    (tree / "q.json").write_text(json.dumps(plain))
    (tree / "talks.json").write_text(json.dumps(talks))
    people = [{"question_id": index, "answers": [{"answer": "a"}] * 10} for index in range(3)]
    (tree / "vqa.json").write_text(json.dumps({"annotations": people}))
    mme = "".join(f"{index}.png\tIs it {index}? Please answer yes or no.\tYes\n" for index in range(3))
    (tree / "count.txt").write_text(mme)
    shown = base64.b64encode((tree / "images" / "0.png").read_bytes()).decode()
    rows = ["index\timage\tquestion\tA\tB\tanswer", f"1\t{shown}\tWhat?\tx\ty\tA", "2\t1\tWhy?\tx\ty\tB"]
    (tree / "q.tsv").write_text("\n".join(rows))
    (tree / "q.jsonl").write_text("\n".join(map(json.dumps, plain)))
    write_pope(tree / "pope", {split: ["yes", "no"] for split in ("random", "popular", "adversarial")})
    (tree / "pope" / "val2014").mkdir()
    for index in range(2):
        picture(index).save(tree / "pope" / "val2014" / f"{index}.jpg")
    write_textvqa(tree / "textvqa", ["What is it?", "Why?"], [["a"] * 10, ["b"] * 10])
    write_bundle(tree / "b")
    _write_mmmu(tree / "mmmu")
    asked = f"eval {tree}/b --questions {tree}/q.json --images {tree}/images --no-blind --max-tokens 2"
    for name in ("answers", "others"):
        done = CliRunner().invoke(
            app, [*asked.split(), "--threads", "1", "--answers", f"{tree}/{name}.jsonl"]
        )
        assert done.exit_code == 0, done.output


def _write_mmmu(tree: Path) -> None:
    (tree / "all_images").mkdir(parents=True)
    picture(0).save(tree / "all_images" / "0.png")
    about = {"prompt": "Which?", "image": "0.png"}
    choice = {
        "question_type": "multiple-choice",
        "all_choices": ["A", "B"],
        "index2ans": {"A": "x", "B": "y"},
    }
    asked = [
        {"id": "validation_Art_1", **about, **choice},
        {"id": "validation_Art_2", **about, "question_type": "short-answer"},
    ]
    (tree / "anns_for_eval.json").write_text(json.dumps(asked))
    truths = {"validation_Art_1": "B", "validation_Art_2": ["5", "five"]}
    answers = {id_: {"question_type": "any", "ground_truth": truth} for id_, truth in truths.items()}
    (tree / "answer_dict_val.json").write_text(json.dumps(answers))


def _write_reports(tree: Path) -> None:
    """A committed report, with two sessions of two blocks left."""
    report = json.loads((ROOT / "benchmarks/results/nano/report.json").read_text())
    for cell in report["cells"]:
        cell["sessions"] = cell["sessions"][:2]
        for session in cell["sessions"]:
            for name in ("requests", "warm_up", "raw"):
                session[name] = session[name][:2]
    for name in ("a", "b"):
        (tree / name).mkdir(parents=True)
        (tree / name / "report.json").write_text(json.dumps(report))
    row = {
        "name": "fp16 + f16",
        "accuracy": 0.5,
        "ci95": [0.25, 0.75],
        "blind_accuracy": 0.125,
        "questions": 8,
    }
    scores: dict[str, Any] = {
        "manifest_sha256": Bundle.open(bundle_path("nano")).manifest_sha256,
        "benchmark": None,
    }
    scores |= {"blind": False, "variants": [{**row, "rule": "exact", "score": None, "asked": None}]}
    (tree / "scores.json").write_text(json.dumps(scores))


def _write_engines(tree: Path) -> None:
    from tests.runtimes.trt.test_cache import make_key, store
    from tinyllava_edge.runtimes.trt.cache import EngineCache
    from tinyllava_edge.runtimes.trt.pack import write_key_pair, write_pack
    from tinyllava_edge.runtimes.trt.record import Choice, Step

    tree.mkdir(mode=0o700)
    cache = EngineCache(tree / "engines")
    record = store(cache, make_key(), b"the engine's plan")
    cache.update(record.model_copy(update={"status": "verified", "parity": {"snr_db": 61.5}}))
    step = Step(runtime="onnxruntime+llamacpp", vision="fp32", outcome="chosen", reason="it passed")
    choice = Choice(
        manifest_sha256="0" * 64, runtime=step.runtime, vision="fp32", engine=make_key().digest, steps=(step,)
    )
    cache.choose(choice)
    write_key_pair(tree / "owner")
    write_pack(tree / "engine.pack", cache.find(make_key()), tree / "owner")


_FORMATS: Sequence[tuple[str, str, dict[str, Any]]] = (
    ("a.png", "RGB", {}),
    ("grey.png", "I;16", {}),
    ("few.png", "P", {}),
    ("a.jpg", "RGB", {}),
    ("four.jpg", "CMYK", {}),
    ("a.webp", "RGBA", {"lossless": True}),
    ("a.bmp", "RGB", {}),
    ("a.gif", "P", {"save_all": True}),
    ("a.tif", "RGB", {"compression": "tiff_lzw"}),
    ("grey.tif", "I;16", {}),
    ("a.ppm", "RGB", {}),
    ("a.avif", "RGB", {}),
)


def _write_pictures(tree: Path) -> None:
    tree.mkdir()
    for name, mode, how in _FORMATS:
        if mode == "I;16":
            values = np.random.default_rng(0).integers(0, 65_536, size=(20, 24), dtype=np.uint16)
            shown = Image.fromarray(values)
        else:
            shown = picture(0, (24, 20)).convert(mode)
        shown.save(tree / name, **how)
