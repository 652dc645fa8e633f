"""Time of transformers' own generation: `python peer_transformers.py MODEL TOKENS ANSWER RUNS [DEVICE]`.

Runs in an environment of its own with torch and transformers, and needs nothing of this package. Greedy, no
end before ANSWER tokens, no prompt twice. Prints a line of JSON. Not yet run on hardware.
"""

import json
import sys
import time
from statistics import median
from typing import Any


def measure(name: str, tokens: int, answer: int, runs: int, device: str) -> dict[str, Any]:
    """Median time of a prompt of so many ids and so many further tokens, float16 on a GPU."""
    import torch
    from transformers import AutoModelForCausalLM

    dtype = torch.float16 if device == "cuda" else torch.float32
    model: Any = AutoModelForCausalLM.from_pretrained(name, dtype=dtype)
    model = model.to(device).eval()
    found = []
    for run in range(runs + 1):
        ids = torch.randint(0, model.config.vocab_size, (1, tokens), generator=torch.manual_seed(run))
        found.append(_one(model, ids.to(device), answer))
    firsts, tokens_ms = zip(*found[1:], strict=True)  # the first one warms up
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else None
    return {
        "model": name, "prompt_tokens": tokens, "answer_tokens": answer, "runs": runs, "device": device,
        "first_token_ms": median(firsts), "tokens_per_second": 1000 / median(tokens_ms), "peak_bytes": peak,
    }  # fmt: skip


def _one(model: Any, ids: Any, answer: int) -> tuple[float, float]:
    """Time in ms to the first token, and from one to the next."""
    marks = []

    class Streamer:
        def put(self, value: Any) -> None:  # the prompt first, then each token, on the host
            marks.append(time.perf_counter())

        def end(self) -> None:
            pass

    lengths = {"min_new_tokens": answer, "max_new_tokens": answer}
    model.generate(ids, attention_mask=ids * 0 + 1, do_sample=False, streamer=Streamer(), **lengths)
    start, first, *_, last = marks
    return 1000 * (first - start), 1000 * (last - first) / (answer - 1)


if __name__ == "__main__":
    model_name, prompt_length, answer_length, repeats = sys.argv[1:5]
    where = sys.argv[5] if len(sys.argv) > 5 else "cuda"
    found = measure(model_name, int(prompt_length), int(answer_length), int(repeats), where)
    print(json.dumps(found))  # noqa: T201
