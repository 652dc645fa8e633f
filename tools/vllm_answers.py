"""What vLLM makes of `export --interchange transformers`, for tests/export/interchange/write_vllm_report.py.

    .peers/vllm/bin/python tools/vllm_answers.py LLAVA ASKED.json OUTPUT.npz

For vLLM's own environment, where nothing of ours is installed. ASKED.json is a list of [picture, question];
OUTPUT.npz has of each, by its number, `ids.N` that the folder's chat template and tokenizer give, `pixels.N`
that its processor gives, `logits.N` of the first token, and `answer.N`, the ids of a greedy answer.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

MOST_TOKENS = 24
CONTEXT = 1024  # positions


def answers(folder: str, asked: list[tuple[str, str]]) -> dict[str, Any]:
    """The arrays, in float32."""
    os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_NO_USAGE_STATS="1", HF_HUB_OFFLINE="1")
    import vllm
    from PIL import Image

    llm: Any = vllm.LLM(
        folder,
        dtype="float32",
        enforce_eager=True,
        max_model_len=CONTEXT,
        max_num_seqs=1,
        kv_cache_memory_bytes=1 << 30,
        enable_prefix_caching=False,
        mm_processor_cache_gb=0,
        generation_config="auto",
    )
    seen: dict[str, Any] = {}
    llm.apply_model(lambda model: _watch(model, seen))
    params = vllm.SamplingParams(temperature=0.0, max_tokens=MOST_TOKENS)
    found: dict[str, Any] = {}
    for number, (picture, question) in enumerate(asked):
        seen.clear()
        image = {"type": "image_pil", "image_pil": Image.open(picture).convert("RGB")}
        content = [image, {"type": "text", "text": question}]
        # A chat template has no BOS here, and vLLM leaves out what the tokenizer would add to it.
        given = {"tokenization_kwargs": {"add_special_tokens": True}, "use_tqdm": False}
        (answer,) = llm.chat([{"role": "user", "content": content}], params, **given)
        found[f"ids.{number}"] = answer.prompt_token_ids
        found[f"pixels.{number}"] = seen["pixels"]
        found[f"logits.{number}"] = seen["logits"]
        found[f"answer.{number}"] = answer.outputs[0].token_ids
    return found


def _watch(model: Any, seen: dict[str, Any]) -> None:
    """Keep the first pixels and logits of each answer."""
    embed, logits_of = model.embed_multimodal, model.compute_logits

    def embed_watched(**given: Any) -> Any:
        seen.setdefault("pixels", given["pixel_values"].float().numpy().copy())
        return embed(**given)

    def logits_watched(hidden: Any) -> Any:
        logits = logits_of(hidden)
        seen.setdefault("logits", logits[-1].float().numpy().copy())
        return logits

    model.embed_multimodal, model.compute_logits = embed_watched, logits_watched


if __name__ == "__main__":
    import numpy

    llava, asked_file, output = sys.argv[1:]
    numpy.savez(output, **answers(llava, json.loads(Path(asked_file).read_text(encoding="utf-8"))))
