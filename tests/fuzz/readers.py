"""What reads a damaged file where no command does it alone, or in a second: functions that commands call."""

import hashlib
import json
import struct
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.damage_bytes import Damage
from tests.runtimes.trt.test_cache import make_key
from tests.train.own_data import own_options
from tinyllava_edge.bundle import Bundle, sha256_of_file
from tinyllava_edge.checkpoint.opened import Checkpoint

DIGEST = make_key().digest
_PLAN = hashlib.sha256(b"the engine's plan").hexdigest()
RECORD = f"engines/{DIGEST}.json"
CHOICE = f"engines/choice-{'0' * 64}.json"
PLAN = f"engines/{DIGEST}-{_PLAN[:16]}.plan"


def read_parities(tree: Path) -> None:
    """As `bench` and `build` do."""
    from tinyllava_edge.benchmarks.bench import figures
    from tinyllava_edge.parity_files import read_parity

    bundle = Bundle.open(tree / "b")
    cell: Any = Namespace(options=Namespace(vision="fp32", language="f32"))
    if (parity := read_parity(bundle, "onnxruntime+llamacpp")) is not None:
        figures._cell_parity(cell, parity)
    read_parity(bundle, "export")


def with_cache(tree: Path) -> None:
    """Open a bundle with this cache (the worker has set XDG_CACHE_HOME)."""
    Bundle.open(tree / "b")


def load_weights(tree: Path) -> None:
    """As `verify`, `train` and runtime torch do."""
    from tinyllava_edge.model.assets import read_assets
    from tinyllava_edge.model.vlm import load_model

    checkpoint = Checkpoint(tree / "ck", sources=tree, allow_pickle=True)
    load_model(checkpoint)
    read_assets(checkpoint)


def read_for_export(tree: Path) -> None:
    """What `export` reads before any work: assets, and the tokenizer as llama.cpp will have it."""
    from tinyllava_edge.export.options import ExportOptions
    from tinyllava_edge.export.pipeline import _open_source

    source = _open_source(Checkpoint(tree / "ck", sources=tree, allow_pickle=True), ExportOptions())
    tokenizer = source.assets.text_tokenizer()
    tokenizer.encode_text("What is this? <image> \u00e9\u2581  </s>\n")
    source.vocabulary()


def read_training(tree: Path) -> None:
    """As `train` does: every record, every picture, every batch."""
    from tinyllava_edge.train.finetune import finetune

    finetune(
        tree / "new", own_options(tree / "data", tree / "ck", per_device_train_batch_size=2, save_steps=0)
    )


def read_recipe(tree: Path) -> None:
    """As `train --recipe FILE` does."""
    from tinyllava_edge.train.recipe import open_recipe

    open_recipe(str(tree / "recipe.yaml")).named("llama")


def read_training_lines(tree: Path) -> None:
    """The same of a record a line, without those that are bad."""
    from tinyllava_edge.train.finetune import finetune

    options = own_options(
        tree / "data",
        tree / "ck",
        data=tree / "data" / "data.jsonl",
        per_device_train_batch_size=2,
        save_steps=0,
    )
    finetune(tree / "new", options, skip_bad=True)


def resume_resealed(tree: Path) -> None:
    """Go on from a snapshot whose seal is right."""
    from tinyllava_edge.train.finetune import finetune

    snapshot = tree / "out.work" / "checkpoint-1"
    files = {path.name: sha256_of_file(path) for path in snapshot.iterdir() if path.name != "seal.json"}
    (snapshot / "seal.json").write_text(json.dumps({"sha256": files}))
    options = own_options(
        tree / "data", tree / "ck", per_device_train_batch_size=2, save_steps=1, learning_rate=None
    )
    finetune(tree / "out", options, resume=True)


def assemble_parts(tree: Path) -> None:
    """As `train --tower --llm` does."""
    from tinyllava_edge.train.assemble import assemble
    from tinyllava_edge.train.parts import Parts

    parts = Parts(tower=tree / "tower", connector="mlp2x_gelu", llm=tree / "llm")
    assemble(tree / "new", parts, seed=0)


def measured(tree: Path) -> None:
    """As `make bench` does for README."""
    from tools.readme import measured_block

    measured_block([tree / "a" / "report.json"])


def read_engines(tree: Path) -> None:
    """As `build` and the runtimes do."""
    from tinyllava_edge.runtimes.trt.cache import EngineCache

    cache = EngineCache(tree / "engines")
    list(cache.records())
    cache.choice("0" * 64)
    with cache.find(make_key()) as found:
        bytes(found.plan)


def read_pack(tree: Path) -> None:
    """As `build --from-pack` does."""
    from tinyllava_edge.runtimes.trt.pack import open_pack

    with open_pack(tree / "engine.pack", tree / "owner.pub") as found:
        bytes(found.plan)


_HEAD = struct.Struct("<16sQQ32s")


def signed_again(damage: Damage) -> Damage:
    """Damage to the record in a pack; its owner signs it in `read_signed_pack`."""

    def damaged(rng: Random, content: bytes) -> bytes:
        magic, record_bytes, plan_bytes, key = _HEAD.unpack_from(content)
        start = _HEAD.size
        record = damage(rng, content[start : start + record_bytes])
        head = _HEAD.pack(magic, len(record), plan_bytes, key)
        return head + record + content[start + record_bytes :]

    return damaged


def read_signed_pack(tree: Path) -> None:
    """A pack of the owner's own, with a signature that is right."""
    from cryptography.hazmat.primitives import serialization

    pack = tree / "engine.pack"
    unsigned = pack.read_bytes()[:-64]
    key: Any = serialization.load_pem_private_key((tree / "owner").read_bytes(), None)
    signed = b"tinyllava-edge engine pack 1\0" + hashlib.sha256(unsigned).digest()
    pack.write_bytes(unsigned + key.sign(signed))
    read_pack(tree)


def sign_with_key(tree: Path) -> None:
    """As `build --pack` does."""
    from tinyllava_edge.runtimes.trt.cache import EngineCache
    from tinyllava_edge.runtimes.trt.pack import write_pack

    write_pack(tree / "new.pack", EngineCache(tree / "engines").find(make_key()), tree / "owner")


def see(name: str) -> Callable[[Path], None]:
    """As `run`, `train` and `eval` do with a picture."""

    def read(tree: Path) -> None:
        from tests.runtimes.bundles import vision_spec
        from tinyllava_edge.image import open_picture, preprocess

        preprocess(open_picture(tree / name), vision_spec().preprocessing)
        preprocess(open_picture((tree / name).read_bytes(), on_white=True), vision_spec().preprocessing)

    return read
