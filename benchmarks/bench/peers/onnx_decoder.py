"""The language model as optimum-onnx exports and runs it: ONNX Runtime, ids alone.

optimum has no exporter for LLaVA (docs/sources/peers.md#onnx-runtime), so nobody sees the picture here: its
positions are filled with an id of the text.
"""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from .lines import Marks, Prompt, Sample, Task, TokenMarks, peak_of


def open_peer(task: Task) -> "OnnxDecoder":
    """Open an exported decoder."""
    return OnnxDecoder(task)


def convert(checkpoint: Path, target: Path, settings: dict[str, Any]) -> None:
    """The language model of a LLaVA checkpoint, alone and in float32, through optimum's exporter."""
    import torch
    from optimum.onnxruntime import ORTModelForCausalLM
    from transformers import AutoModelForCausalLM, LlavaForConditionalGeneration

    whole: Any = LlavaForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
    automatic: Any = AutoModelForCausalLM
    language = automatic.from_config(whole.config.text_config, dtype=torch.float32)
    language.model.load_state_dict(whole.model.language_model.state_dict())
    language.lm_head.load_state_dict(whole.lm_head.state_dict())
    with TemporaryDirectory(dir=target) as folder:
        language.save_pretrained(folder)
        del whole, language
        ORTModelForCausalLM.from_pretrained(folder, export=True).save_pretrained(target)


class OnnxDecoder:
    """optimum's `ORTModelForCausalLM.generate`, with its defaults apart from the number of threads."""

    def __init__(self, task: Task) -> None:
        import onnxruntime
        import optimum.version
        import torch
        from optimum.onnxruntime import ORTModelForCausalLM

        torch.set_num_threads(task.threads)
        self._task, self._torch = task, torch
        self._versions = {"optimum": optimum.version.__version__, "onnxruntime": onnxruntime.__version__}
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = task.threads
        self._model: Any = ORTModelForCausalLM.from_pretrained(
            task.files["model"], session_options=options, provider="CPUExecutionProvider"
        )
        self._model.generation_config.eos_token_id = None

    def facts(self) -> dict[str, Any]:
        """See `Peer`."""
        return {
            "versions": self._versions,
            "library": "ONNX Runtime, float32 decoder with a KV cache",
            "language_only": True,
            "cannot_match": [
                "sees no picture: optimum has no exporter for LLaVA. Its positions are filled with an id of "
                "the text, so prefill and time per token are comparable, and nothing else is",
                "keeps nothing between requests",
            ],
        }

    def answer(self, prompt: Prompt) -> Sample:
        """See `Peer`."""
        before, after = prompt.parts()
        ids = self._torch.tensor([[*before, *after[:1] * self._task.tokens_per_picture, *after]])
        marks = Marks()
        found = self._model.generate(
            input_ids=ids,
            attention_mask=self._torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=self._task.num_tokens,
            streamer=TokenMarks(marks),
        )
        marks.rest_is_prefill()
        return marks.sample(found[0, ids.shape[1] :].tolist(), prompt_tokens=ids.shape[1])

    def second(self) -> Sample | None:
        """See `Peer`."""
        return None

    def forced(self, prompt: Prompt, ids: Sequence[int]) -> Any:
        """See `Peer`."""
        return None

    def peak_bytes(self) -> int:
        """See `Peer`."""
        return peak_of()

    def close(self) -> None:
        """See `Peer`."""
