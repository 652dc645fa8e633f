"""Which engine of the private cache is for a bundle on this machine."""

from tinyllava_edge.bundle import Bundle, Variant
from tinyllava_edge.device import read_driver, read_machine
from tinyllava_edge.errors import NoEngineError

from .binding import TensorRT
from .builder import JETSON_SMS
from .cache import EngineCache, StoredEngine
from .cudart import Gpu
from .cudart_places import LIBRARY_VARIABLE
from .record import Board, EngineRecord


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
    if not fitting and board.sm in JETSON_SMS:
        fitting = [record for record in records if board.differs_in_power_mode(record.key.board)]
    if not fitting:
        raise NoEngineError(
            f"no engine of vision {variant.name} was built for this machine{_others(records, board)}. {line}"
        )
    chosen = choice.engine if choice else None
    record = max(fitting, key=lambda r: (r.key.digest == chosen, r.status == "verified", r.stored_utc))
    if record.status != "verified" and (record.status, record.key.digest) != ("answers equal", chosen):
        force = " --force" if record.status == "refused" else ""
        why = record.reason or "it was not checked on this device"
        raise NoEngineError(f"the engine of vision {variant.name} is not to be used: {why}. {line}{force}")
    try:
        stored = cache.find(record.key)
    except NoEngineError as error:
        raise NoEngineError(f"the engine of vision {variant.name} cannot be used: {error}. {line}") from None
    stored.note = _note(record, board, line)
    return stored


def _others(records: list[EngineRecord], board: Board) -> str:
    """In what the engines that there are differ."""
    differences = sorted({board.difference(record.key.board) for record in records})
    if not differences:
        return ""
    other_cuda = any(record.key.board.cuda != board.cuda for record in records)
    hint = f" ({LIBRARY_VARIABLE} can name the other CUDA library)" if other_cuda else ""
    return f"; those there are differ: this is {'; '.join(differences)}{hint}"


def _note(record: EngineRecord, board: Board, line: str) -> str:
    """What the user of an engine should know of it."""
    said = []
    if (there := record.key.board.multiprocessors) != board.multiprocessors:
        said.append(
            f"built in another power mode ({there} multiprocessors, here are {board.multiprocessors}); "
            f"{line} builds again for this one"
        )
    if record.status == "answers equal":
        said.append(f"not verified: {record.reason}")
    return "; ".join(said)
