"""README's commands as a newcomer types them, in a new Debian: `python -m tools.newcomer ROOT`.

ROOT becomes a minimal system (debootstrap) with the packages of README's own line and a copy of HEAD without
its history. The commands are read out of README; each is run by that system's shell, and shown with what it
printed last and the time it took. Needs root, debootstrap and a network. What this machine's network wants is
carried in: the name server, pip's settings and certificates.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from threading import Timer
from typing import NamedTuple

from tinyllava_edge.console import note

README = Path(__file__).parents[1] / "README.md"
HOME = "/root/tinyllava-edge"
# What pip and Python read of this machine's network.
SETTINGS = ("PIP_", "SSL_CERT_", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY")
FILES = ("/etc/resolv.conf", "/etc/pip.conf", "/etc/xdg/pip", "/opt/wheels")
AUTHORITIES = Path("usr/local/share/ca-certificates")  # copied: packages write what is made of them
TAIL = 12  # lines of output shown


class Step(NamedTuple):
    """One command: the shell's line, its exit status, its seconds, what it printed last."""

    line: str
    status: int
    seconds: float
    output: list[str]


class Readme(NamedTuple):
    """The lines that README tells a newcomer to type."""

    packages: str
    commands: list[str]
    serve: str
    python: str


def read_readme(text: str) -> Readme:
    """The commands of its set-up, of the page to try it on, and its lines of Python.

    Raises:
        ValueError: README has no such line where a newcomer would look.
    """
    packages = re.search(r"`(apt install [^`]+)`", text)
    serve = re.search(r"`([^`\n]+tinyllava-edge serve \w+)`", text)
    python = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    commands = re.findall(r"^    (make \w+)", text, re.MULTILINE)
    if not (packages and serve and python and commands):
        raise ValueError(f"{README}: its packages, its commands, `serve` or its Python were not found.")
    return Readme(packages[1].replace("install", "install -y", 1), commands, serve[1], python[1])


def inside(root: Path, line: str) -> list[str]:
    """The command that runs a shell's line in the root, with mounts that end with it."""
    settings = [f"{name}={value}" for name, value in os.environ.items() if name.startswith(SETTINGS)]
    system = ["HOME=/root", "PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"]
    mounts = [f"mount -t proc proc {root}/proc", f"mount --rbind /dev {root}/dev"]
    for name in filter(os.path.exists, FILES):
        make = "mkdir -p" if Path(name).is_dir() else f"mkdir -p {root}{Path(name).parent} && touch"
        mounts.append(f"{make} {root}{name} && mount --bind {name} {root}{name}")
        mounts.append(f"mount -o remount,ro,bind {root}{name}")
    shell = ["chroot", str(root), "env", "-i", *system, *settings, "sh", "-c", f"cd {HOME} && {line}"]
    return ["unshare", "--mount", "sh", "-ec", f"{' && '.join(mounts)} && exec {shlex.join(shell)}"]


def timed(command: list[str], line: str, limit_s: float) -> Step:
    """Run it to its end, and show what it prints."""
    note(line)
    began = time.monotonic()
    pipe, too = subprocess.PIPE, subprocess.STDOUT
    done = subprocess.Popen(command, stdout=pipe, stderr=too, text=True, errors="replace")
    assert done.stdout is not None
    output = []
    timer = Timer(limit_s, done.kill)
    timer.start()
    for printed in done.stdout:
        output.append(printed.rstrip())
        sys.stderr.write(f"    {printed}")
    status = done.wait()
    timer.cancel()
    return Step(line, status, time.monotonic() - began, output)


def prepare(root: Path, suite: str, commit: str) -> None:
    """A minimal system, and a commit of the checkout in it."""
    debootstrap = ["debootstrap", "--variant=minbase", suite, str(root), "http://deb.debian.org/debian"]
    subprocess.run(debootstrap, check=True, stdout=sys.stderr)
    shutil.copytree("/" / AUTHORITIES, root / AUTHORITIES, dirs_exist_ok=True)
    home = root / HOME.removeprefix("/")
    home.mkdir(parents=True)
    archive = subprocess.run(["git", "archive", commit], check=True, capture_output=True, cwd=README.parent)
    subprocess.run(["tar", "-x", "-C", home], input=archive.stdout, check=True)


def serve(root: Path, line: str) -> Step:
    """Start it, fetch its page, and end it as Ctrl-C does."""
    note(line)
    began = time.monotonic()
    server = subprocess.Popen(inside(root, f"exec {line}"), stderr=subprocess.PIPE, text=True)
    page = b""
    while not page and server.poll() is None and time.monotonic() - began < 60:
        time.sleep(0.2)
        try:
            with urllib.request.urlopen("http://127.0.0.1:8000/", timeout=10) as answer:
                page = answer.read()
        except OSError:
            continue
    seconds = time.monotonic() - began
    is_ours = server.poll() is None
    server.send_signal(2)
    said = server.communicate(timeout=60)[1].splitlines()
    title = re.search(rb"<title>(.*?)</title>", page)
    said.append(f"(fetched: {len(page)} bytes, {title[0].decode() if title else 'no title'})")
    return Step(line, 0 if title and is_ours else 1, seconds, said)


def run(root: Path) -> Iterator[Step]:
    """All of it, in README's order."""
    readme = read_readme(README.read_text(encoding="utf-8"))
    yield timed(inside(root, f"apt-get update -qq && {readme.packages} -qq"), readme.packages, 1200)
    for line in readme.commands:
        yield timed(inside(root, line), line, 7200)
    yield serve(root, readme.serve)
    python = f".venv/bin/python - <<'E'\n{readme.python}E"
    yield timed(inside(root, python), python, 300)


def report(command: str, commit: str, steps: list[Step]) -> str:
    """Markdown."""
    load = os.getloadavg()[1]
    yes = "all ended well" if not any(step.status for step in steps) else "NOT ALL ENDED WELL"
    lines = [
        "# README's commands in a fresh Debian",
        "",
        f"`{command}` at {commit[:12]}, {time.strftime('%Y-%m-%d')}, "
        f"{os.cpu_count()} cores, load average {load:.1f} at the end; pip's cache was empty: {yes}.",
    ]
    for step in steps:
        minutes, seconds = divmod(round(step.seconds), 60)
        ended = "" if not step.status else f", EXIT CODE {step.status}"
        lines += ["", "```", f"$ {step.line}", *["..."] * (len(step.output) > TAIL), *step.output[-TAIL:]]
        lines += ["```", f"{minutes} min {seconds} s{ended}"]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run all; the report is written also where a command failed, and the exit status is then 1."""
    parser = argparse.ArgumentParser(prog="python -m tools.newcomer", description=__doc__)
    parser.add_argument("root", type=Path, help="a new directory")
    parser.add_argument("--suite", default="trixie")
    parser.add_argument("-o", "--output", type=Path, default=Path("newcomer.md"))
    options = parser.parse_args()
    if options.root.exists() or os.geteuid() or shutil.which("debootstrap") is None:
        parser.error("expected a ROOT that is not there yet, root's rights, and debootstrap.")
    command = f"python -m tools.newcomer {options.root} --suite {options.suite}"
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, check=True, cwd=README.parent)
    root, commit, steps = options.root.resolve(), head.stdout.decode().strip(), list[Step]()
    prepare(root, options.suite, commit)
    for step in run(root):
        steps.append(step)
        options.output.write_text(report(command, commit, steps), encoding="utf-8")
    sys.exit(any(step.status for step in steps))


if __name__ == "__main__":
    main()
