"""What a start costs with as many records as LLaVA's mix has: `python -m tests.train.measure_start`.

Prints, for JSON and for JSON lines, the seconds that `train` takes up to its first step (imports apart), of
those the processor's, and the peak of anonymous memory. Writes 2 GB to a temporary folder.
"""

import json
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

from PIL import Image

ROWS = 665_298  # llava_v1_5_mix665k.json
PICTURES = 1000


def write_rows(folder: Path, count: int = ROWS) -> list[Path]:
    """The same records as a list and as lines, as large as there, and their pictures."""
    words = 'a \\"small\\" red valve is open on the left, near caf\\u00e9 {3} [4]\\n' * 2
    turns = [{"from": ("human", "gpt")[index % 2], "value": "TEXT"} for index in range(10)]
    turns[0]["value"] = "<image>\\nTEXT"
    talk = json.dumps(turns).replace("\\\\n", "\\n").replace("TEXT", words)
    for index in range(PICTURES):
        Image.new("RGB", (40, 30), (index % 256, index // 256, 0)).save(folder / f"{index}.jpg")
    files = [folder / "data.json", folder / "data.jsonl"]
    with files[0].open("w") as listed, files[1].open("w") as lines:
        for index in range(count):
            row = f'{{"id": "{index:012d}", "image": "{index % PICTURES}.jpg", "conversations": {talk}}}'
            listed.write(f"{', ' if index else '['}{row}")
            lines.write(f"{row}\n")
        listed.write("]")
    return files


def measure_start(data: Path) -> dict[str, Any]:
    """In a process of its own: the seconds up to the first step, and the memory at its peak."""
    from tests.train.own_data import own_options, write_small_checkpoint
    from tinyllava_edge.train import finetune
    from tinyllava_edge.train.trainer import TinyLlavaTrainer

    class FirstStepError(Exception):
        """The batch of the first step is there."""

    def training_step(*_: object) -> None:
        raise FirstStepError

    def watch() -> None:
        while True:
            status = Path("/proc/self/status").read_text()
            peak[0] = max(peak[0], int(status.split("RssAnon:")[1].split()[0]) // 1024)
            time.sleep(0.01)

    peak = [0]
    source = write_small_checkpoint(data.parent / f"{data.name}.ck")
    threading.Thread(target=watch, daemon=True).start()
    time.sleep(0.1)
    before, began, processor = peak[0], time.monotonic(), time.process_time()
    with suppress(FirstStepError), patch.object(TinyLlavaTrainer, "training_step", training_step):
        finetune.finetune(data.parent / f"{data.name}.out", own_options(data.parent, source, data=data))
    return {
        "file": data.name,
        "bytes": data.stat().st_size,
        "seconds": round(time.monotonic() - began, 2),
        "processor_seconds": round(time.process_time() - processor, 2),
        "anonymous_mb_before": before,
        "anonymous_mb_peak": peak[0],
    }


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.stdout.write(json.dumps(measure_start(Path(sys.argv[1]))) + "\n")
    else:
        with tempfile.TemporaryDirectory() as folder:
            for file in write_rows(Path(folder)):
                subprocess.run([sys.executable, "-m", __spec__.name, str(file)], check=True)
