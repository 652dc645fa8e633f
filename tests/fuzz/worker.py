"""One input: the tree copied, its file damaged, read in a process of its own, and what became of that.

Outcomes: "ok" (also exit code 1, a verdict), "typed" (a TinyLlavaEdgeError, or exit code 2 with one line),
"traceback", "signal", "hang"; "unclear" is an error longer than a screen, or one that a terminal obeys.
"""

import contextlib
import faulthandler
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.kinds import KINDS, Kind
from tinyllava_edge.errors import TinyLlavaEdgeError

FAULTS = ("traceback", "signal", "hang", "unclear")
OUTCOMES = ("ok", "typed", *FAULTS)
_MEMORY = 3 << 30  # bytes that reading an input may take beyond what a worker has
_LONGEST_ERROR = 3000  # characters
_OBEYED = set(map(chr, range(32))) - set("\n\t\r") | {"\x7f", "\u202e"}


@dataclass(frozen=True)
class Outcome:
    """What became of an input.

    Attributes:
        index: of the input, which with seed and kind makes it again.
        where: of a fault: the last line of ours, or the signal.
        detail: all that was said.
    """

    kind: str
    index: int
    outcome: str
    where: str = ""
    detail: str = ""


def damaged_input(kind: Kind, name: str, seed: int, index: int, content: bytes) -> bytes:
    """The input of an index; -1 is the good file."""
    if index < 0:
        return content
    return kind.damage(random.Random(f"{seed} {name} {index}"), content)


def read_input(corpus: Path, name: str, seed: int, index: int, scratch: Path) -> Outcome:
    """Damage and read one input, in this process."""
    kind = KINDS[name]
    tree = Path(shutil.copytree(corpus / kind.tree, scratch / "tree"))
    os.environ["XDG_CACHE_HOME"] = str(tree / "cache")
    file = tree / kind.file
    file.write_bytes(damaged_input(kind, name, seed, index, file.read_bytes()))
    kind.seal(tree)
    try:
        outcome, where, detail = (
            _read_by_command(kind.read, tree) if isinstance(kind.read, str) else _read(kind.read, tree)
        )
    finally:
        shutil.rmtree(tree, ignore_errors=True)
    return Outcome(name, index, outcome, where, detail)


def _read(read: Callable[[Path], object], tree: Path) -> tuple[str, str, str]:
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            read(tree)
    except TinyLlavaEdgeError as error:
        return _judged(str(error))
    except OSError as error:  # which a command tells on one line
        return _judged(f"{error.filename}: {error.strerror}") if error.strerror else _traced(error)
    except BaseException as error:
        return _traced(error)
    return "ok", "", ""


def _read_by_command(words: str, tree: Path) -> tuple[str, str, str]:
    """As `tinyllava-edge` does, but in this process, which has imported what it needs."""
    from tinyllava_edge import cli, console

    sys.argv = ["tinyllava-edge", *(word.replace("{}", str(tree)) for word in words.split())]
    told, said = (
        io.TextIOWrapper(io.BytesIO(), "utf-8", errors) for errors in ("strict", "backslashreplace")
    )
    code: object = 0
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(said):
        console.stdout.file, console.stderr.file = told, said
        try:
            cli.main()
        except SystemExit as error:
            code = error.code
        except BaseException as error:
            return _traced(error)
    printed, words = _text(told), _text(said)
    shown = words if sys.argv[1] == "run" else printed + words  # an answer goes into a pipe as it is
    if _OBEYED & set(shown):
        return "unclear", "what a terminal obeys", (printed + words)[-2000:]
    if code in (0, 1, None):
        return "ok", "", ""
    lines = [line for line in words.splitlines() if line.startswith("tinyllava-edge: ")]
    if code != 2 or len(lines) != 1:
        return "unclear", f"code {code}, {len(lines)} lines", words[-2000:]
    return _judged(lines[0])


def _text(stream: io.TextIOWrapper) -> str:
    stream.flush()
    content = stream.buffer
    assert isinstance(content, io.BytesIO)
    return content.getvalue().decode()


def _judged(message: str) -> tuple[str, str, str]:
    if len(message) > _LONGEST_ERROR:
        return "unclear", f"{len(message)} characters", message[:300]
    if not message.strip():
        return "unclear", "an empty message", ""
    return "typed", "", message


def _traced(error: BaseException) -> tuple[str, str, str]:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "/tests/fuzz/" not in f.filename and "site-packages" not in f.filename]
    last = ours[-1] if ours else frames[-1]
    name = "/".join(Path(last.filename).parts[-2:])
    detail = "".join(traceback.format_exception(error))
    return "traceback", f"{name}:{last.lineno} {type(error).__name__}", detail[-4000:]


def run_in_worker(
    corpus: Path, name: str, seed: int, indices: Iterable[int], *, timeout: float
) -> Iterator[Outcome]:
    """Read inputs one after the other in a forked process; another one goes on where one dies or hangs."""
    left = list(indices)
    while left:
        for outcome in _one_worker(corpus, name, seed, left, timeout):
            left.remove(outcome.index)
            yield outcome


def _one_worker(corpus: Path, name: str, seed: int, indices: list[int], timeout: float) -> Iterator[Outcome]:
    import select

    scratch = Path(tempfile.mkdtemp(prefix="tinyllava-fuzz-"))
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _serve(corpus, name, seed, indices, scratch, writing, timeout)
    os.close(writing)
    waiting, is_killed = list(indices), False
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        buffer = b""
        while True:
            if not select.select([pipe], [], [], timeout)[0]:
                os.kill(child, signal.SIGKILL)
                is_killed = True
                break
            if not (block := pipe.read(1 << 16)):
                break
            *lines, buffer = (buffer + block).split(b"\n")
            for line in lines:
                waiting.pop(0)
                yield Outcome(**json.loads(line))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    log = scratch / "faults"
    detail = log.read_text(errors="replace")[-4000:] if log.exists() else ""
    shutil.rmtree(scratch, ignore_errors=True)
    if waiting:
        frames = [line.strip() for line in detail.splitlines() if "tinyllava" in line or "/wt/" in line]
        cause = "hang" if is_killed else "signal"
        how = "" if is_killed else f"{signal.Signals(-code).name if code < 0 else f'exit code {code}'} "
        yield Outcome(name, waiting[0], cause, how + (frames[0] if frames else ""), detail)


def _serve(
    corpus: Path, name: str, seed: int, indices: list[int], scratch: Path, writing: int, timeout: float
) -> None:
    """In the child: every outcome is written to the pipe as a line."""
    try:
        _settle(scratch)
        with (scratch / "faults").open("w") as log:
            faulthandler.enable(log)
            for index in indices:
                faulthandler.dump_traceback_later(0.8 * timeout, file=log)
                outcome = read_input(corpus, name, seed, index, scratch)
                faulthandler.cancel_dump_traceback_later()
                os.write(writing, json.dumps(vars(outcome)).encode() + b"\n")
        os._exit(0)
    except BaseException:
        traceback.print_exc(file=sys.__stderr__)
        os._exit(99)


def _settle(scratch: Path) -> None:
    """Bounds on memory and cores; what libraries print goes to a file; temporary files to the scratch."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + _MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sink = os.open(scratch / "said", os.O_RDWR | os.O_CREAT)
    for handle in (0, 1, 2):
        os.dup2(sink, handle)
    tempfile.tempdir = str(scratch)
