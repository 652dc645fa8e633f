"""Which engine of the private cache is for a bundle on this machine."""

from tinyllava_edge.bundle import Bundle, Variant
from tinyllava_edge.device import read_driver, read_machine
from tinyllava_edge.errors import NoEngineError

from .binding import TensorRT
from .cache import EngineCache, StoredEngine
from .cudart import Gpu
from .record import Board


def read_board(binding: TensorRT, gpu: Gpu) -> Board:
    """What an engine depends on of this machine and its libraries."""
    jetson = read_machine().jetson
    return Board(
        library=binding.target,
        library_version=binding.version_text,
        gpu=gpu.name,
        sm=gpu.sm,
        multiprocessors=gpu.multiprocessors,
        driver=f"{read_driver() or 'unknown'}, CUDA {gpu.driver_cuda}",
        cuda=gpu.runtime_cuda,
        module=(jetson.module or jetson.model) if jetson else None,
        l4t=jetson.l4t if jetson else None,
    )


def onnx_hashes(bundle: Bundle, variant: Variant) -> dict[str, str]:
    """SHA-256 of a variant's graph and of its external data, by path."""
    hashes = {entry.path: entry.sha256 for entry in bundle.manifest.files}
    return {path: hashes[path] for path in variant.files}


def least_engine_bytes(bundle: Bundle, variant: Variant) -> int:
    """What a variant's engine takes of the disk at least, before there is one.

    TensorRT keeps the weights in the types that the graph has: engines of float16 graphs had 0.98 (ViT-S)
    to 1.5 (nano) times the graph's bytes (docs/tensorrt.md).
    """
    return bundle.variant_bytes(variant) * 9 // 10


def find_engine(cache: EngineCache, bundle: Bundle, vision: str | None, board: Board) -> StoredEngine:
    """The engine of a variant, or of the one that `build` chose.

    Raises:
        BundleError: the bundle has no such variant.
        NoEngineError: there is no engine for this machine, none that passed, or it is damaged; says which,
            and the command that builds one.
    """
    line = f"tinyllava-edge build {bundle.root} --target {board.library}"  # builds what is missing
    choice = cache.choice(bundle.manifest_sha256)
    if vision is None:
        if choice is None or choice.engine is None:
            why = f", for which build chose {choice.runtime}" if choice else ""
            raise NoEngineError(f"no engine was built here for {bundle.root}{why}: {line}")
        vision = choice.vision
    variant = bundle.variant("vision", vision)
    line += f" --vision {variant.name}"
    hashes = onnx_hashes(bundle, variant)
    records = [record for _, record in cache.records() if record is not None and record.key.onnx == hashes]
    fitting = [record for record in records if record.key.board == board]
    if not fitting:
        others = {board.difference(record.key.board) for record in records}
        built = f"; those there are differ: this is {'; '.join(sorted(others))}" if others else ""
        raise NoEngineError(f"no engine of vision {variant.name} was built for this machine{built}. {line}")
    chosen = choice.engine if choice else None
    record = max(fitting, key=lambda r: (r.key.digest == chosen, r.status == "verified", r.stored_utc))
    if record.status != "verified":
        force = " --force" if record.status == "refused" else ""
        why = record.reason or "it was not checked on this device"
        raise NoEngineError(f"the engine of vision {variant.name} is not to be used: {why}. {line}{force}")
    try:
        return cache.find(record.key)
    except NoEngineError as error:
        raise NoEngineError(f"the engine of vision {variant.name} cannot be used: {error}. {line}") from None
