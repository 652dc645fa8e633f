"""vLLM's engine for processors on a LLaVA checkpoint, one request at a time.

docs/sources/peers.md#vllm has what it keeps between requests, and what of it is emptied here.
"""

import os
import time
from collections.abc import Sequence
from typing import Any

from .lines import PICTURE, Marks, Prompt, Sample, Task, peak_of

_BLOCK = 128  # positions: vLLM's own for processors
_MOST_KV_BYTES = 4 << 30  # more than the blocks below take: without it vLLM wants 92 % of the memory
# In this very process, as threads and memory are then those that are asked for and measured.
_SETTINGS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}


def open_peer(task: Task) -> "Vllm":
    """Open a LLaVA checkpoint."""
    return Vllm(task)


class Vllm:
    """The engine with its defaults in the dtype of the task's setting, but room for one request alone."""

    def __init__(self, task: Task) -> None:
        os.environ.update(_SETTINGS, OMP_NUM_THREADS=str(task.threads))
        import torch
        import vllm
        from PIL import Image

        torch.set_num_threads(task.threads)
        self._task, self._torch, self._vllm = task, torch, vllm
        self._llm = vllm.LLM(
            task.files["checkpoint"],
            dtype=task.settings["dtype"],
            max_model_len=task.context_length,
            max_num_batched_tokens=max(task.context_length, 2048),
            max_num_seqs=1,
            kv_cache_memory_bytes=_MOST_KV_BYTES,
            num_gpu_blocks_override=-(-task.context_length // _BLOCK) + 2,
            block_size=_BLOCK,
            enable_prefix_caching=True,
            limit_mm_per_prompt={"image": 1},
            generation_config="vllm",
        )
        self._picture = Image.open(task.picture).convert("RGB")
        self._marks = Marks()
        self._asked = 0
        self._llm.apply_model(self._watch)

    def facts(self) -> dict[str, Any]:
        """See `Peer`."""
        return {
            "versions": {"vllm": self._vllm.__version__, "torch": self._torch.__version__},
            "library": f"{self._task.settings['dtype']}, compiled by torch.compile where it does that itself",
            "cannot_match": [
                "its own image processor and the search for the picture's place are timed, as preprocess",
                "all that it keeps between requests is emptied before each but the second question",
                f"second question: what it keeps are whole blocks of {_BLOCK} positions",
                "runs in one process, where its server has two",
            ],
        }

    def answer(self, prompt: Prompt) -> Sample:
        """See `Peer`."""
        engine = self._llm.llm_engine
        engine.reset_mm_cache()
        engine.reset_encoder_cache()
        if not engine.reset_prefix_cache():
            raise RuntimeError("vLLM did not empty its cache of prefixes")
        return self._answer(prompt)

    def second(self) -> Sample | None:
        """See `Peer`."""
        self.answer(self._task.first)
        return self._answer(self._task.second)

    def forced(self, prompt: Prompt, ids: Sequence[int]) -> Any:
        """See `Peer`; its logits are read, and then the next of `ids` is made the best."""
        rows: list[Any] = []

        def force(model: Any) -> None:
            def logits_of(hidden: Any) -> Any:
                found = type(model).compute_logits(model, hidden)
                rows.append(found[-1].float().clone())
                found.fill_(-1e4)
                found[:, ids[len(rows) - 1]] = 0.0
                return found

            model.compute_logits = logits_of

        self._llm.apply_model(force)
        try:
            self.answer(prompt)
        finally:
            self._llm.apply_model(lambda model: delattr(model, "compute_logits"))
        return self._torch.stack(rows[: len(ids)]).numpy()

    def peak_bytes(self) -> int:
        """See `Peer`."""
        return peak_of()

    def close(self) -> None:
        """See `Peer`."""

    def _answer(self, prompt: Prompt) -> Sample:
        params = self._vllm.SamplingParams(
            temperature=0.0, max_tokens=self._task.num_tokens, ignore_eos=True, detokenize=False
        )
        engine, ids = self._llm.llm_engine, self._ids(prompt)
        self._asked += 1
        marks = self._marks = Marks()
        with marks.stage("preprocess"):
            given = {"prompt_token_ids": ids, "multi_modal_data": {"image": self._picture}}
            engine.add_request(str(self._asked), given, params)
        while engine.has_unfinished_requests():
            for found in engine.step():  # noqa: B007  # the last one is read below
                marks.mark_token()
        marks.rest_is_prefill()
        return marks.sample(
            list(found.outputs[0].token_ids),
            prompt_tokens=len(found.prompt_token_ids),
            reused_tokens=found.num_cached_tokens,
        )

    def _ids(self, prompt: Prompt) -> list[int]:
        """With one image token: vLLM makes as many of it as the picture has rows."""
        picture = self._llm.model_config.hf_config.image_token_index
        return [picture if token == PICTURE else token for token in prompt.ids]

    def _watch(self, model: Any) -> None:
        """Time the tower and its connector."""
        embed = model.embed_multimodal

        def timed(**given: Any) -> Any:
            start = time.perf_counter_ns()
            found = embed(**given)
            self._marks.spent_ms["vision"] = (time.perf_counter_ns() - start) / 1e6
            return found

        model.embed_multimodal = timed
