"""The command in a process of its own, as a user meets it."""

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

_ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # faster for tiny tensors, and kind to who shares the machine


class Ran(NamedTuple):
    """What a command left."""

    code: int
    out: str
    errors: str

    @property
    def last_line(self) -> str:
        """Of what it said; of one that failed, why."""
        lines = (self.errors or self.out).strip().splitlines()
        return lines[-1] if lines else ""


def ran(*words: str | Path, seconds: int = 600, cache: Path | None = None) -> Ran:
    """`tinyllava-edge WORDS`, with a cache folder in the place of the user's."""
    line = [sys.executable, "-m", "tinyllava_edge", *map(str, words)]
    env = {**os.environ, **_ONE_THREAD, **({"XDG_CACHE_HOME": str(cache)} if cache else {})}
    done = subprocess.run(line, capture_output=True, text=True, timeout=seconds, env=env)
    return Ran(done.returncode, done.stdout, done.stderr)
