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
    model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype).to(device).eval()
    found = []
    with torch.inference_mode():
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
    """Time in ms to the first token, and from one to the next; reading a token waits for the GPU."""
    start, cache = time.perf_counter(), None
    marks = []
    for _ in range(answer):
        out = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        ids, cache = out.logits[:, -1:].argmax(-1), out.past_key_values
        ids.item()
        marks.append(time.perf_counter())
    return 1000 * (marks[0] - start), 1000 * (marks[-1] - marks[0]) / (answer - 1)


if __name__ == "__main__":
    model_name, *numbers = sys.argv[1:5]
    where = sys.argv[5] if len(sys.argv) > 5 else "cuda"
    print(json.dumps(measure(model_name, *map(int, numbers), device=where)))  # noqa: T201
