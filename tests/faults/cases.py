"""What is interrupted: commands that write an output, where there was none before, or one of ours."""

import contextlib
import hashlib
import shutil
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tinyllava_edge.bundle import Bundle
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.errors import NoEngineError, TinyLlavaEdgeError

OUT = "out"


@dataclass(frozen=True)
class Case:
    """A command, and how its output is judged.

    Attributes:
        run: a command's words, in which {source} and {place} are directories, or a function of these.
        again: what goes on after an interruption; `run` itself where it is None.
        whole: raises where the output is not a whole one.
        force: of the words, where an older output is to be replaced.
        beside: names beside the output that an interrupted run may leave for the next one.
    """

    run: str | Callable[[Path, Path], None]
    whole: Callable[[Path], object]
    again: str | None = None
    force: str = " --force"
    beside: tuple[str, ...] = ()


def write_sources(folder: Path) -> None:
    """What the commands read."""
    from tests.runtimes.bundles import write_bundle
    from tests.train.own_data import write_own_data, write_small_checkpoint

    folder.mkdir()
    write_bundle(folder / "b")
    write_small_checkpoint(folder / "ck")
    (folder / "data").mkdir()
    write_own_data(folder / "data", count=4)


def _write_bundle(source: Path, place: Path) -> None:
    from tests.core.small_bundle import write_small_bundle

    write_small_bundle(place / OUT, force=(place / OUT).exists())


def _store_engine(source: Path, place: Path) -> None:
    from tests.runtimes.trt.test_cache import make_key, store
    from tinyllava_edge.runtimes.trt.cache import EngineCache

    plan = b"a later plan" if (place / OUT).exists() else b"a plan"
    store(EngineCache(place / OUT), make_key(), plan)


def _stored_engine(out: Path) -> None:
    from tests.runtimes.trt.test_cache import make_key
    from tinyllava_edge.runtimes.trt.cache import EngineCache

    with contextlib.suppress(NoEngineError):  # not yet, which is no harm
        EngineCache(out).find(make_key()).plan.release()


def _deployed(out: Path) -> None:
    from tinyllava_edge.runtimes.deploy import deploy_mark

    Bundle.open(out / "bundle")
    if fault := deploy_mark(out):
        raise AssertionError(fault)


def _trained(out: Path) -> None:
    from tinyllava_edge.model.vlm import load_model

    load_model(Checkpoint(out))
    if not (out / "training_log.jsonl").exists() or not (out / "tinyllava_edge.json").exists():
        raise AssertionError(f"{out} is not whole")


_TRAIN = (
    "train --from {source}/ck --data {source}/data/data.json -o {place}/out --batch-size 2 --save-every 1 "
    "--precision fp32"
)
CASES = {
    "bundle": Case(_write_bundle, Bundle.open),
    "prune": Case("prune {source}/b -o {place}/out --vision fp32 --language f32", Bundle.open),
    "deploy": Case("deploy nano --device orin-nano-8gb -o {place}/out", _deployed),
    "export": Case("export {source}/ck -o {place}/out --vision fp32,fp16 --language f32,q8_0", Bundle.open),
    "train": Case(_TRAIN, _trained, f"{_TRAIN} --resume", beside=("out.work",)),
    "build record": Case(_store_engine, _stored_engine),
}


def perform(words: str | Callable[[Path, Path], None], source: Path, place: Path, force: str) -> int:
    """Do it in this process, as the program does; returns its exit code, 99 for a traceback."""
    from tinyllava_edge import cli

    try:
        if callable(words):
            words(source, place)
            return 0
        line = words + (force if (place / OUT).exists() else "")
        sys.argv = ["tinyllava-edge", *line.format(source=source, place=place).split()]
        cli.main()
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    except (TinyLlavaEdgeError, OSError) as error:
        sys.stderr.write(f"tinyllava-edge: {error}\n")
        return 2
    except BaseException:
        traceback.print_exc()
        return 99
    return 0


def fingerprint(out: Path) -> str:
    """Of every name and byte of an output; "" where there is none."""
    if not out.exists():
        return ""
    digest = hashlib.sha256()
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(out)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def fresh(place: Path, older: Path | None) -> None:
    """The place with the older output in it, or nothing."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    if older is not None:
        shutil.copytree(older, place / OUT)
