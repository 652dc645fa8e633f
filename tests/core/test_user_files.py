"""Only a regular file is opened, whatever a name leads to, and nothing waits for ever."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tinyllava_edge.errors import DataError, FileError
from tinyllava_edge.user_files import read_user_file, read_user_text


def _link_to_a_pipe(path: Path) -> None:
    os.mkfifo(f"{path}2")
    path.symlink_to(f"{path}2")


KINDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "no such file"),
    "directory": (lambda path: path.mkdir(), "a directory"),
    "pipe": (lambda path: os.mkfifo(path), "a pipe"),
    "link to a pipe": (_link_to_a_pipe, "a pipe"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "a device"),
    "loop": (lambda path: path.symlink_to(path.name), "a link that leads to itself"),
    "dangling": (lambda path: path.symlink_to("gone"), "a link to gone, which is not there"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_is_named(tmp_path: Path, kind: str) -> None:
    make, said = KINDS[kind]
    make(tmp_path / "given")
    with pytest.raises(FileError, match=f"given: .*{said}"):
        read_user_file(tmp_path / "given")


def test_a_socket_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # its name may have 107 bytes
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("given")
        with pytest.raises(FileError, match="given: cannot be read: not a file, but a socket"):
            read_user_file("given")


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "file/below"])
def test_a_name_that_cannot_be_is_the_error_asked_for(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError):
        read_user_file(f"{tmp_path}/{name}", error=DataError)


def test_a_file_is_read_through_links_up_to_its_size(tmp_path: Path) -> None:
    (tmp_path / "~\n").mkdir()
    (tmp_path / "~\n" / "file").write_text("täxt")
    (tmp_path / "link").symlink_to("~\n/file")
    assert read_user_text(tmp_path / "link", most=5) == "täxt"
    with pytest.raises(FileError, match="link: 5 bytes, expected at most 4"):
        read_user_text(tmp_path / "link", most=4)
    (tmp_path / "~\n" / "file").write_bytes(b"\xff")
    with pytest.raises(FileError, match="link: not UTF-8"):
        read_user_text(tmp_path / "link")


@pytest.mark.skipif(
    not os.path.exists("/proc/version"), reason="needs Linux' /proc, whose files have no size"
)
def test_a_file_with_more_than_it_says_is_read_up_to_the_limit() -> None:
    content = Path("/proc/version").read_bytes()
    assert len(content) > os.stat("/proc/version").st_size
    for most in (len(content), len(content) + 9):
        assert read_user_file("/proc/version", most=most) == content
    for most in (0, 1, len(content) - 1):
        with pytest.raises(FileError, match=f"version: .*expected at most {most}"):
            read_user_file("/proc/version", most=most)
