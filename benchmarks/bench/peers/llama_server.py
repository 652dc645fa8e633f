"""llama.cpp's `llama-server`, asked through its own completion call, picture and all.

Runs under the interpreter of this package, which it asks with; the program is what `make peers` built.
docs/sources/peers.md#llama-server has the call.
"""

import base64
import json
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinyllava_edge.benchmarks.bench.peers.peer_server import end, wait_for

from .lines import Marks, Prompt, Sample, Task, peak_of

_MARKER = "<image>"


def open_peer(task: Task) -> "LlamaServer":
    """Start a server of a GGUF and its mmproj."""
    return LlamaServer(task)


class LlamaServer:
    """One server of one slot, with its defaults apart from threads and context."""

    def __init__(self, task: Task) -> None:
        self._task = task
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        files = ("-m", task.files["gguf"], "--mmproj", task.files["mmproj"])
        numbers = ("-t", str(task.threads), "-c", str(task.context_length), "--parallel", "1")
        command = (task.files["program"], *files, *numbers, "--host", "127.0.0.1", "--port", str(port))
        self._url = f"http://127.0.0.1:{port}"
        self._process = subprocess.Popen(command, stdout=sys.stderr, start_new_session=True)
        try:
            wait_for(self._url, self._process)
            with urllib.request.urlopen(f"{self._url}/props") as answer:
                self._props: dict[str, Any] = json.load(answer)
        except BaseException:
            end(self._process)
            raise
        self._picture = base64.b64encode(Path(task.picture).read_bytes()).decode()

    def facts(self) -> dict[str, Any]:
        """See `Peer`."""
        return {
            "versions": {"llama-server": str(self._props.get("build_info", "unknown"))},
            "library": "its own process, asked over HTTP; memory is the server's",
            "cannot_match": [
                "tokenizes the text and prepares the picture itself",
                "does not tell the picture's time from the prompt's",
                "gives no logits of a given answer, so only its own greedy tokens are compared",
            ],
        }

    def answer(self, prompt: Prompt) -> Sample:
        """See `Peer`."""
        return self._ask(prompt, is_new=True)

    def second(self) -> Sample | None:
        """See `Peer`: the first one was asked just now, and its slot holds it."""
        return self._ask(self._task.second, is_new=False)

    def forced(self, prompt: Prompt, ids: Sequence[int]) -> Any:
        """See `Peer`."""
        return None

    def peak_bytes(self) -> int:
        """See `Peer`."""
        return peak_of(self._process.pid)

    def close(self) -> None:
        """See `Peer`."""
        end(self._process)

    def _ask(self, prompt: Prompt, *, is_new: bool) -> Sample:
        marker = self._props.get("media_marker", "<__media__>")
        body = {
            "prompt": {
                "prompt_string": prompt.text.replace(_MARKER, marker),
                "multimodal_data": [self._picture],
            },
            "n_predict": self._task.num_tokens, "temperature": 0, "ignore_eos": True, "stream": True,
            "return_tokens": True, "cache_prompt": not is_new,
        }  # fmt: skip
        marks, ids, said = Marks(), [], {}
        request = urllib.request.Request(
            f"{self._url}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as stream:
            for line in stream:
                if not line.startswith(b"data: {"):
                    continue
                said = json.loads(line[6:])
                for token in said.get("tokens", ()):
                    marks.mark_token()
                    ids.append(token)
        if len(ids) != self._task.num_tokens:
            raise RuntimeError(f"it streamed {len(ids)} tokens, {self._task.num_tokens} were asked for")
        timings = said.get("timings", {})
        reused = int(timings.get("cache_n", 0))
        return marks.sample(ids, prompt_tokens=int(timings.get("prompt_n", 0)) + reused, reused_tokens=reused)
