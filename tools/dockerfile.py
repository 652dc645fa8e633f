"""Run a Dockerfile's lines in chroots, where there is no Docker: what its RUN lines do is then seen.

    debootstrap --variant=minbase bookworm BASE http://deb.debian.org/debian
    python -m tools.dockerfile [--wheels DIR] docker/cpu.Dockerfile BASE WORK [-- COMMAND...]

Every stage starts as a copy of BASE, whatever its FROM says. COMMAND runs in the last one, as its USER. Needs
root. `--wheels DIR` lends pip wheels, as of llama-cpp-python, which takes minutes to compile.
"""

import argparse
import re
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
IGNORED = (".git", ".venv", "__pycache__", "demo-out", "tests", "build")  # .dockerignore


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


def lend(root: Path, wheels: Path | None) -> dict[str, str]:
    """Copy into a root what reaches a registry from here; returns the variables that name it.

    Copies, for a root's packages write where they please: nothing of this machine is mounted into it.
    """
    lent = root / "lent"
    lent.mkdir(exist_ok=True)
    for name in ("/etc/resolv.conf", "/etc/hosts"):
        shutil.copy(name, root / name.lstrip("/"))
    shutil.copy("/etc/ssl/certs/ca-certificates.crt", lent / "ca.crt")
    if wheels:
        shutil.copytree(wheels, lent / "wheels", dirs_exist_ok=True)
    names = ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
    return {**dict.fromkeys(names, "/lent/ca.crt"), **({"PIP_FIND_LINKS": "/lent/wheels"} if wheels else {})}


def run_in(root: Path, command: str, environment: dict[str, str], user: str = "root") -> int:
    """A shell's line in a root, as a user of it, with a /proc of its own."""
    inner = shlex.join(["chroot", f"--userspec={user}", str(root), "/bin/sh", "-c", command])
    mounted = f"mount -t proc proc {shlex.quote(str(root / 'proc'))} && exec {inner}"
    words = ["unshare", "--mount", "--propagation", "private", "sh", "-c", mounted]
    return subprocess.run(words, env={"PATH": PATH, **environment}, check=False).returncode


def run_stage(
    stage: Stage, root: Path, context: Path, roots: dict[str, Path], lent: dict[str, str]
) -> tuple[dict[str, str], str]:
    """All steps of a stage; returns its environment and user.

    Raises:
        SystemExit: a step failed, or is one that is not known here.
    """
    environment, user = {**lent, "PATH": PATH, "HOME": "/root"}, "root"
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
            ignore = None if options else shutil.ignore_patterns(*IGNORED)
            copied = (origin / source.lstrip("/"), root / target.lstrip("/"))
            shutil.copytree(*copied, symlinks=True, dirs_exist_ok=True, ignore=ignore)
        elif word == "RUN":
            code = run_in(root, rest, environment, user)
            outcome = "ok" if code == 0 else f"exit code {code}"
            sys.stdout.write(f"{outcome}, {time.monotonic() - began:.0f} s: {rest}\n")
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
    parser.add_argument("--wheels", type=Path)
    parser.add_argument("command", nargs="*")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    roots: dict[str, Path] = {}
    environment, user, root = {"PATH": PATH}, "root", options.base
    for number, stage in enumerate(read_stages(options.dockerfile)):
        root = options.work.resolve() / str(number)
        subprocess.run(["cp", "-a", options.base, root], check=True)
        lent = lend(root, options.wheels)
        environment, user = run_stage(stage, root, Path.cwd(), roots, lent)
        roots[stage.name] = root
    if not options.command:
        return 0
    home = {"HOME": f"/home/{user}"} if user != "root" else {}
    return run_in(root, shlex.join(options.command), {**environment, **home}, user)


if __name__ == "__main__":
    sys.exit(main())
