"""What is watched: folders, videos, a camera of the network on loopback; what goes wrong. nano, CPU."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.runtimes.watch.videos import CAT, EMOJI, ROOT, Camera, frame_of, write_video
from tinyllava_edge import Model, open_bundle, open_bundle_async
from tinyllava_edge.cli import app
from tinyllava_edge.errors import CameraError, FileError, TinyLlavaEdgeError, UsageError
from tinyllava_edge.runtimes.async_model import AsyncModel
from tinyllava_edge.runtimes.watch import folder, video
from tinyllava_edge.runtimes.watch.sources import open_source
from tinyllava_edge.runtimes.watch.watching import Seen, Watch

QUESTION = "What is this?"


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with open_bundle("nano", threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten frames at 25 a second: a cat, then berries."""
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", [CAT, EMOJI])


def run(*arguments: str) -> Any:
    result = CliRunner().invoke(app, ["watch", "nano", *arguments, "--threads", "1"])
    if isinstance(result.exception, TinyLlavaEdgeError):
        raise result.exception
    return result


# A video file


def test_every_frame_of_a_video_is_asked_about_as_by_itself(model: Model, clip: Path) -> None:
    seen = list(model.watch(str(clip), QUESTION, every_frame=True))
    assert [one.index for one in seen] == list(range(10))
    assert [one.position_s for one in seen] == pytest.approx([number / 25 for number in range(10)])
    for one, picture in ((seen[0], CAT), (seen[9], EMOJI)):
        assert one.answer == model.ask(QUESTION, frame_of(picture).to_image())
        assert one.timings is not None
        assert 0 < one.timings.total_ms / 1000 <= one.age_s
    assert seen[0].answer != seen[9].answer


def test_a_video_keeps_its_time_and_the_newest_frame_wins(clip: Path) -> None:
    with open_bundle("nano", threads=1) as slow:
        encode = slow.vision.encode

        def slowly(pixels: Any) -> Any:
            time.sleep(0.15)
            return encode(pixels)

        slow.vision.encode = slowly  # type: ignore[method-assign]
        with slow.watch(clip, QUESTION) as watch:
            seen = list(watch)
            summary = watch.summary
    assert 2 <= len(seen) <= 4
    assert seen[-1].index == 9, "the last frame is the newest when the video has ended"
    assert sum(one.skipped for one in seen) == summary.skipped == 10 - len(seen)
    assert (summary.frames, summary.answered) == (10, len(seen))
    assert summary.seconds >= 9 / 25


def test_seconds_between_questions_are_the_videos_own(model: Model, clip: Path) -> None:
    seen = list(model.watch(clip, QUESTION, every_s=0.16, every_frame=True))
    assert [one.index for one in seen] == [0, 4, 8]
    assert [one.skipped for one in seen] == [0, 3, 3]


def test_only_what_changed_is_asked_about_and_the_limit_ends_it(model: Model, clip: Path) -> None:
    watch = model.watch(clip, QUESTION, every_frame=True, changed=3)
    assert [one.index for one in watch] == [0, 5]
    assert watch.summary.unchanged == 8
    assert len(list(model.watch(clip, QUESTION, every_frame=True, limit=3))) == 3


def test_a_video_of_a_phone_is_seen_upright(model: Model, clip: Path, tmp_path: Path) -> None:
    """The file's matrix says that it was held: 90 degrees clockwise to be shown."""
    content = clip.read_bytes()
    upright = b"".join(number.to_bytes(4, "big") for number in (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30))
    turned = (0, 1 << 16, 0, 0xFFFF0000, 0, 0, 0, 0, 1 << 30)
    at = content.rindex(upright)  # of the track, behind that of the file
    turned_file = tmp_path / "held.mp4"
    turned_file.write_bytes(
        content[:at] + b"".join(number.to_bytes(4, "big") for number in turned) + content[at + 36 :]
    )
    [plain], [held] = (
        [next(open_source(path).frames(threading.Event(), wait=True)).open()] for path in (clip, turned_file)
    )
    assert held.size == (120, 160)
    assert held.tobytes() == plain.transpose(Image.Transpose.ROTATE_270).tobytes()


def test_a_video_of_which_parts_are_damaged_goes_on(model: Model, tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi", [CAT, EMOJI], hold=10, codec="mpeg4")
    content, draw = bytearray(path.read_bytes()), Random(3)
    for at in (
        place for place in range(len(content) // 2, len(content) - 4) if content[place : place + 4] == b"00dc"
    ):
        if draw.random() < 0.3:
            content[at + 8 : at + 400] = draw.randbytes(392)
    path.write_bytes(content)
    watch = model.watch(path, QUESTION, every_frame=True)
    seen = list(watch)
    assert 10 <= len(seen) < 20
    assert watch.summary.damaged > 0


def test_what_is_no_video_is_one_line(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cut.mp4").write_bytes(clip.read_bytes()[:3000])
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "list.mp4").write_text(f"ffconcat version 1.0\nfile {clip}\n")
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1/x.ts\n#EXT-X-ENDLIST\n")
    shutil.copy(CAT, tmp_path / "cat.mp4")
    for name in ("cut.mp4", "empty.mp4", "list.mp4", "list.m3u8", "cat.mp4"):
        with pytest.raises(CameraError, match=rf"{name}: (cannot be opened|no )") as caught:
            run(str(tmp_path / name), QUESTION)
        assert "\n" not in str(caught.value)
    for name, said in (("none.mp4", "No such file"), ("\0", "null"), ("http://x/y", "http:// is no source")):
        with pytest.raises(CameraError, match=said):
            run(str(tmp_path / name) if said == "No such file" else name, QUESTION)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileError, match="a pipe"):
        run(str(tmp_path / "pipe"), QUESTION)
    monkeypatch.setattr(video, "MAX_PIXELS", 100)
    with pytest.raises(CameraError, match="frames of 160 x 120: expected at most"):
        run(str(clip), QUESTION)


def test_a_video_without_frames_is_one_line(clip: Path, tmp_path: Path) -> None:
    content = bytearray(write_video(tmp_path / "a.avi", [CAT], hold=3).read_bytes())
    first = content.index(b"movi")
    content[first + 12 : content.index(b"idx1")] = bytes(content.index(b"idx1") - first - 12)
    (tmp_path / "a.avi").write_bytes(content)
    with pytest.raises(CameraError, match=r"a\.avi: no frame in it"):
        run(str(tmp_path / "a.avi"), QUESTION)


def test_settings_that_are_none_are_refused(model: Model, clip: Path) -> None:
    refused: list[dict[str, Any]] = [{"every_s": -1}, {"limit": 0}, {"changed": 256}]
    for wrong in refused:
        with pytest.raises(UsageError, match="expected"):
            model.watch(clip, QUESTION, **wrong)


def test_without_pyav_one_line_says_what_to_install(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tinyllava_edge.cli import EXTRAS

    monkeypatch.delitem(sys.modules, "tinyllava_edge.runtimes.watch.video")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ModuleNotFoundError) as caught:
        open_source(clip)
    assert EXTRAS[str(caught.value.name)] == "camera"


# The command


def test_the_command_prints_lines_and_a_summary(clip: Path) -> None:
    result = run(str(clip), QUESTION, "--every-frame", "--every", "0.2")
    assert result.exit_code == 0
    first, second = result.stdout.splitlines()
    assert first.startswith("0.00 s, frame 0: ")
    assert ", 4 skipped)" in second
    assert "10 frames, 2 answered, 8 skipped" in result.stderr
    lines = [
        json.loads(line) for line in run(str(clip), QUESTION, "--every-frame", "--json").stdout.splitlines()
    ]
    assert [line.get("index") for line in lines] == [*range(10), None]
    assert lines[-1]["answered"] == 10


def test_ctrl_c_ends_with_130_and_the_summary(tmp_path: Path) -> None:
    command = "from tinyllava_edge.__main__ import main; main()"
    arguments = [sys.executable, "-c", command, "watch", "nano", str(tmp_path), QUESTION, "--threads", "1"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(arguments, **pipes, cwd=ROOT) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        while "Ctrl-C ends" not in process.stderr.readline():
            assert process.poll() is None
        shutil.copy(EMOJI, tmp_path / "1.webp")
        assert "1.webp: " in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.stderr.read().splitlines()[-2].startswith("1 frames, 1 answered, 0 skipped")
    assert process.returncode == 130


# A folder


class Kept:
    """What a watch says, from a thread."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.seen: list[Seen] = []
        self.fault: Exception | None = None
        self.thread = threading.Thread(target=self._read)
        self.thread.start()

    def _read(self) -> None:
        try:
            self.seen += iter(lambda: next(self.watch, None), None)
        except Exception as fault:
            self.fault = fault

    def wait_until(self, count: int, within_s: float = 10) -> None:
        ends = time.monotonic() + within_s
        while self.watch.summary.answered + self.watch.summary.failed < count:
            assert time.monotonic() < ends
            time.sleep(0.01)


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look more often than people need."""
    monkeypatch.setattr(folder, "LOOK_S", 0.02)
    monkeypatch.setattr(video, "FIRST_PAUSE_S", 0.05)


def test_new_pictures_of_a_folder_are_asked_about_and_those_before_are_not(
    model: Model, tmp_path: Path
) -> None:
    shutil.copy(CAT, tmp_path / "old.jpg")
    (tmp_path / "notes.txt").write_text("no picture")
    kept = Kept(model.watch(tmp_path, QUESTION, limit=3))
    shutil.copy(EMOJI, tmp_path / "a.webp")
    kept.wait_until(1)
    shutil.copy(CAT, tmp_path / ".hidden.jpg")
    (tmp_path / ".hidden.jpg").rename(tmp_path / "b.jpg")
    kept.wait_until(2)
    shutil.copy(EMOJI, tmp_path / "old.jpg")  # written anew; what it says of its type does not count
    kept.thread.join(10)
    assert [Path(str(one.picture)).name for one in kept.seen] == ["a.webp", "b.jpg", "old.jpg"]
    assert [one.answer for one in kept.seen] == [model.ask(QUESTION, each) for each in (EMOJI, CAT, EMOJI)]


def test_a_file_that_is_still_written_is_not_read(model: Model, tmp_path: Path) -> None:
    """However long the writer pauses: half a picture does not decode."""
    content = CAT.read_bytes()
    kept = Kept(model.watch(tmp_path, QUESTION, limit=1))
    with (tmp_path / "slow.jpg").open("wb") as file:
        for at in range(0, len(content), len(content) // 3):
            file.write(content[at : at + len(content) // 3])
            file.flush()
            assert not kept.seen
            time.sleep(0.15)
    kept.thread.join(10)
    assert [one.answer for one in kept.seen] == [model.ask(QUESTION, CAT)]
    assert kept.watch.summary.failed == 0


def test_a_damaged_picture_is_named_once_and_ends_nothing(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "PATIENCE_S", 0.2)
    kept = Kept(model.watch(tmp_path, QUESTION, limit=1))
    (tmp_path / "half.jpg").write_bytes(CAT.read_bytes()[:2000])
    os.utime(tmp_path / "half.jpg", (1 << 33, 1 << 33))  # of a camera whose clock is wrong
    kept.wait_until(1)
    shutil.copy(EMOJI, tmp_path / "whole.webp")
    kept.thread.join(10)
    assert "half.jpg: damaged picture" in str(kept.seen[0].error)
    assert kept.seen[0].answer is None
    assert [one.answer is not None for one in kept.seen] == [False, True]


def test_of_several_new_pictures_the_newest_wins_unless_all_count(model: Model, tmp_path: Path) -> None:
    for every_frame, wanted in (
        (False, ["5.webp"]),
        (True, ["1.webp", "2.webp", "3.webp", "4.webp", "5.webp"]),
    ):
        place = tmp_path / str(every_frame)
        place.mkdir()
        watched = open_source(place)
        for number in range(1, 6):
            shutil.copy(EMOJI, place / f"{number}.webp")
            os.utime(place / f"{number}.webp", (number, number))
        kept = Kept(
            Watch(
                model,
                watched,
                QUESTION,
                every_frame=every_frame,
                limit=len(wanted),
                settings={"max_tokens": 1},
            )
        )
        kept.thread.join(10)
        assert [Path(str(one.picture)).name for one in kept.seen] == wanted
        assert kept.watch.summary.skipped == 5 - len(wanted)


def test_an_async_watch_leaves_the_model_to_other_tasks_and_ends_when_cancelled(tmp_path: Path) -> None:
    async def watch(model: AsyncModel, seen: list[Seen]) -> None:
        async for one in model.watch(tmp_path, QUESTION, max_tokens=1):
            seen.append(one)

    async def whole() -> None:
        seen: list[Seen] = []
        async with open_bundle_async("nano", threads=1) as model:
            task = asyncio.create_task(watch(model, seen))
            alone = await model.ask(QUESTION, EMOJI, max_tokens=1)  # while the folder shows nothing
            shutil.copy(EMOJI, tmp_path / "a.webp")
            while not seen:
                await asyncio.sleep(0.02)
            assert [seen[0].answer, Path(str(seen[0].picture)).name] == [alone, "a.webp"]
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    before = set(threading.enumerate())
    asyncio.run(asyncio.wait_for(whole(), 30))
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
        assert not thread.is_alive()


def test_a_folder_that_goes_away_is_one_line(model: Model, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    kept = Kept(model.watch(tmp_path / "in", QUESTION))
    (tmp_path / "in").rmdir()
    kept.thread.join(10)
    assert "the folder cannot be read" in str(kept.fault)
    assert isinstance(kept.fault, CameraError)


# A camera of the network


def test_a_stream_that_is_lost_is_found_again(model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    with Camera(frames=[8]).serving() as camera, model.watch(camera.url, QUESTION) as watch:
        while not watch.summary.reconnects:
            first = next(watch)
            assert first.age_s < 5
        again = next(watch)
        assert again.answer == first.answer
        assert again.index > 0
        assert camera.clients == 2
    error = capsys.readouterr().err
    assert f"{camera.url}: lost (" in error
    assert "back after " in error


def test_a_stream_that_cannot_be_had_is_one_line_without_its_password() -> None:
    with Camera().serving() as camera:
        camera.status = "401 Unauthorized"
        with pytest.raises(CameraError, match="401") as caught:
            open_source(camera.url.replace("://", "://me:secret@"))
        assert "secret" not in str(caught.value)
        camera.status = "200 OK"
        with pytest.raises(UsageError, match="does not wait"):
            run(camera.url, QUESTION, "--every-frame")
    with pytest.raises(CameraError, match="Connection refused"):
        open_source(camera.url)
    with pytest.raises(CameraError, match=f"^{camera.url}: .*Connection refused"):
        open_source(camera.url.replace("://", "://me:p@ss@w@"))  # FFmpeg takes the last @, too


def test_a_stream_that_says_nothing_is_lost(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "DATA_S", 0.3)
    with Camera(frames=[3]).serving() as camera:
        camera.silent = True
        with pytest.raises(CameraError, match="no picture within"):
            open_source(camera.url)
        camera.silent = False
        with model.watch(camera.url, QUESTION) as watch:
            next(watch)
            camera.silent = True
            threading.Timer(0.7, setattr, (camera, "silent", False)).start()
            while not watch.summary.reconnects:
                next(watch)
            assert next(watch).answer


def test_a_watch_is_closed_while_its_stream_says_nothing(model: Model) -> None:
    with Camera(frames=[3]).serving() as camera:
        camera.silent = False
        watch = model.watch(camera.url, QUESTION)
        next(watch)
        camera.silent = True
        time.sleep(0.2)
        began = time.monotonic()
        watch.close()
        assert time.monotonic() - began < video.DATA_S / 2
        assert watch.summary.answered >= 1
        camera.silent = False
