"""Run a Dockerfile's lines in chroots, where there is no Docker: what its RUN lines do is then seen.

    debootstrap --variant=minbase bookworm BASE http://deb.debian.org/debian
    python -m tools.dockerfile docker/cpu.Dockerfile BASE WORK [-- COMMAND...]

Every stage starts as a copy of BASE, whatever its FROM says. COMMAND runs in the last one, as its USER. Needs
root. pip's cache and settings of this machine are lent to the roots.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

LENT = (
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/ssl/certs",
    "/etc/pip.conf",
    "/opt/wheels",
    "/root/.cache/pip",
)


@dataclass
class Stage:
    """One FROM, and the instructions until the next."""

    base: str
    name: str
    steps: list[tuple[str, str]] = field(default_factory=list)


def read_stages(path: Path) -> list[Stage]:
    """The stages of a Dockerfile; a step is an instruction and its arguments."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    stages: list[Stage] = []
    for line in text.replace("\\\n", " ").splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            stages.append(Stage(base, name))
        elif word:
            stages[-1].steps.append((word, rest.strip()))
    return stages


def run_in(root: Path, command: str, environment: dict[str, str], user: str = "root") -> int:
    """A shell's line in a root, as a user of it; what is lent is there as long as it runs."""
    mounts = [(Path(name), root / name.lstrip("/")) for name in LENT if Path(name).exists()]
    for source, target in [*mounts, (Path("/proc"), root / "proc"), (Path("/dev"), root / "dev")]:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.mkdir(exist_ok=True) if source.is_dir() else target.touch()
    binds = "".join(f"mount --bind {source} {target} && " for source, target in mounts)
    binds += f"mount --bind /dev {root}/dev && mount -t proc proc {root}/proc"
    inner = shlex.join(["chroot", f"--userspec={user}", str(root), "/bin/sh", "-c", command])
    words = ["unshare", "--mount", "--propagation", "private", "sh", "-c", f"{binds} && exec {inner}"]
    kept = {
        name: value
        for name, value in os.environ.items()
        if "CERT" in name or name.startswith(("PIP_", "SSL_"))
    }
    return subprocess.run(words, env={**kept, **environment}, check=False).returncode


def run_stage(stage: Stage, root: Path, context: Path, roots: dict[str, Path]) -> tuple[dict[str, str], str]:
    """All steps of a stage; returns its environment and user.

    Raises:
        SystemExit: a step failed, or is one that is not known here.
    """
    environment, user = (
        {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"},
        "root",
    )
    for word, rest in stage.steps:
        began = time.monotonic()
        if word in ("ENV", "ARG"):
            name, _, value = rest.partition("=")
            environment[name] = re.sub(r"\$(\w+)", lambda found: environment.get(found[1], ""), value)
        elif word == "USER":
            user = rest
        elif word == "COPY":
            *options, source, target = rest.split()
            origin = roots[options[0].removeprefix("--from=")] if options else context
            shutil.copytree(
                origin / source.lstrip("/"),
                root / target.lstrip("/"),
                symlinks=True,
                dirs_exist_ok=True,
                ignore=shutil.ignore_patterns(".git", ".venv", "__pycache__", "demo-out", "tests", "build"),
            )
        elif word == "RUN":
            code = run_in(root, rest, environment, user)
            sys.stdout.write(
                f"{'ok' if code == 0 else f'exit code {code}'}, {time.monotonic() - began:.0f} s: {rest}\n"
            )
            sys.stdout.flush()
            if code != 0:
                sys.exit(1)
        elif word != "ENTRYPOINT":
            sys.exit(f"{word} is not known here")
    return environment, user


def main() -> int:
    """Run every stage, then the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("dockerfile", "base", "work"):
        parser.add_argument(name, type=Path)
    parser.add_argument("command", nargs="*")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    roots: dict[str, Path] = {}
    environment, user, root = {"PATH": ""}, "root", options.base
    for number, stage in enumerate(read_stages(options.dockerfile)):
        root = options.work.resolve() / str(number)
        subprocess.run(["cp", "-a", options.base, root], check=True)
        environment, user = run_stage(stage, root, Path.cwd(), roots)
        roots[stage.name] = root
    if not options.command:
        return 0
    home = {"HOME": f"/home/{user}"} if user != "root" else {}
    return run_in(root, shlex.join(options.command), {**environment, **home}, user)


if __name__ == "__main__":
    sys.exit(main())
