"""transformers' own `LlavaForConditionalGeneration.generate`, eager PyTorch, as it is documented."""

import time
from collections.abc import Sequence
from typing import Any

from .lines import PICTURE, Marks, Prompt, Sample, Task, TokenMarks, peak_of


def open_peer(task: Task) -> "TransformersLlava":
    """Open a LLaVA checkpoint."""
    return TransformersLlava(task)


class TransformersLlava:
    """The model in the dtype of the task's setting `dtype`."""

    def __init__(self, task: Task) -> None:
        import numpy as np
        import torch
        import transformers

        torch.set_num_threads(task.threads)
        self._task, self._torch, self._transformers = task, torch, transformers
        dtype = getattr(torch, task.settings["dtype"])
        model: Any = transformers.LlavaForConditionalGeneration.from_pretrained(
            task.files["checkpoint"], dtype=dtype
        )
        self._model = model.eval()
        # No id ends the answer. `min_new_tokens` would keep these ids from being chosen instead.
        self._model.generation_config.eos_token_id = None
        self._pixels = torch.from_numpy(np.load(task.pixels)).to(dtype)
        self._marks = Marks()
        self._vision_start_ns = 0
        self._model.model.vision_tower.register_forward_pre_hook(self._vision_begins)
        self._model.model.multi_modal_projector.register_forward_hook(self._vision_ends)

    def facts(self) -> dict[str, Any]:
        """See `Peer`."""
        return {
            "versions": {
                "transformers": self._transformers.__version__,
                "torch": self._torch.__version__,
            },
            "library": f"{self._task.settings['dtype']}, {self._model.config._attn_implementation} attention",
            "cannot_match": [
                "is given the bundle's pixels: its own image processor is not timed",
                "keeps nothing between requests: a second question costs what the first one does",
            ],
        }

    def answer(self, prompt: Prompt) -> Sample:
        """See `Peer`."""
        ids = self._ids(prompt)
        self._marks = Marks()
        found = self._model.generate(
            input_ids=ids,
            attention_mask=self._torch.ones_like(ids),
            pixel_values=self._pixels,
            do_sample=False,
            max_new_tokens=self._task.num_tokens,
            streamer=TokenMarks(self._marks),
        )
        self._marks.rest_is_prefill()
        answer = found[0, ids.shape[1] :].tolist()
        return self._marks.sample(answer, prompt_tokens=ids.shape[1])

    def second(self) -> Sample | None:
        """See `Peer`."""
        return None

    def forced(self, prompt: Prompt, ids: Sequence[int]) -> Any:
        """See `Peer`."""
        answer = self._torch.tensor([list(ids[:-1])], dtype=self._torch.long)
        whole = self._torch.cat([self._ids(prompt), answer], dim=1)
        with self._torch.inference_mode():
            found = self._model(input_ids=whole, pixel_values=self._pixels, logits_to_keep=len(ids))
        return found.logits[0].float().numpy()

    def peak_bytes(self) -> int:
        """See `Peer`."""
        return peak_of()

    def close(self) -> None:
        """See `Peer`."""

    def _ids(self, prompt: Prompt) -> Any:
        """[1, positions], the picture's as many times its id as the bundle makes rows."""
        picture = [self._model.config.image_token_id] * self._task.tokens_per_picture
        spread = [x for token in prompt.ids for x in (picture if token == PICTURE else [token])]
        return self._torch.tensor([spread])

    def _vision_begins(self, *_: Any) -> None:
        self._vision_start_ns = time.perf_counter_ns()

    def _vision_ends(self, *_: Any) -> None:
        self._marks.spent_ms["vision"] = (time.perf_counter_ns() - self._vision_start_ns) / 1e6
