"""OpenVINO GenAI's `VLMPipeline` on what optimum-intel made of a LLaVA checkpoint.

docs/sources/peers.md#openvino has what it does with prompt and picture.
"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from .lines import PICTURE, Marks, Prompt, Sample, Task, peak_of
from .older_transformers import write_readable

_AS_IT_IS = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def open_peer(task: Task) -> "OpenVinoLlava":
    """Open a converted model."""
    return OpenVinoLlava(task)


def convert(checkpoint: Path, target: Path, settings: dict[str, Any]) -> None:
    """Weights of so many bits as optimum-intel's own command makes them, with its defaults."""
    program = Path(sys.executable).with_name("optimum-cli")
    options = ("--task", "image-text-to-text", "--weight-format", f"int{settings['bits']}")
    with TemporaryDirectory(dir=target) as folder:
        write_readable(checkpoint, readable := Path(folder, "checkpoint"))
        command = [str(program), "export", "openvino", "-m", str(readable), *options, str(target)]
        if code := subprocess.run(command, check=False).returncode:
            sys.exit(code)  # without words: the command's own are the last ones
    if not (target / "openvino_tokenizer.xml").is_file():
        raise RuntimeError(f"optimum-intel made no tokenizer of the one in {checkpoint}")


class OpenVinoLlava:
    """The pipeline with its defaults on the CPU, apart from the number of threads."""

    def __init__(self, task: Task) -> None:
        import numpy as np
        import openvino
        import openvino_genai
        from PIL import Image

        self._task, self._np, self._openvino, self._genai = task, np, openvino, openvino_genai
        properties = {"INFERENCE_NUM_THREADS": task.threads, **task.settings.get("properties", {})}
        self._pipeline = openvino_genai.VLMPipeline(task.files["model"], "CPU", **properties)
        self._pixels = np.array(Image.open(task.picture).convert("RGB"))[None]
        self._answers = 0
        self._settings = openvino_genai.GenerationConfig()
        self._settings.max_new_tokens = task.num_tokens
        self._settings.ignore_eos = True
        self._settings.do_sample = False
        self._settings.apply_chat_template = False
        self._pipeline.get_tokenizer().set_chat_template(_AS_IT_IS)  # a chat has to have one

    def facts(self) -> dict[str, Any]:
        """See `Peer`."""
        return {
            "versions": {
                "openvino": self._openvino.__version__,
                "openvino-genai": self._genai.__version__,
            },
            "library": f"int{self._task.settings['bits']} weights of optimum-intel, CPU plugin's defaults",
            "cannot_match": [
                "tokenizes the prompt itself, as one text, and puts a line feed behind the picture",
                "resizes and crops the picture itself; it is given at the tower's own size",
                "keeps the context of earlier requests, so the picture of each is rolled by another column",
                "its CPU plugin computes in bfloat16 where the processor has it, with an 8-bit KV cache",
                "second question: the second turn of a chat, with the first answer before it",
            ],
        }

    def answer(self, prompt: Prompt) -> Sample:
        """See `Peer`."""
        return self._generate(prompt.text, [self._unseen_picture()])

    def second(self) -> Sample | None:
        """See `Peer`."""
        self._pipeline.start_chat()
        try:
            self._generate(self._task.first.text, [self._unseen_picture()])
            return self._generate(self._task.second.text.replace("<image>", "").lstrip("\n"), [])
        finally:
            self._pipeline.finish_chat()

    def forced(self, prompt: Prompt, ids: Sequence[int]) -> Any:
        """See `Peer`; the same files through optimum-intel, as the pipeline gives no logits."""
        import numpy as np
        import torch
        from optimum.intel import OVModelForVisualCausalLM

        options = {"INFERENCE_NUM_THREADS": str(self._task.threads)}
        model: Any = OVModelForVisualCausalLM.from_pretrained(self._task.files["model"], ov_config=options)
        # With fewer image tokens than this it takes each of them for a whole picture.
        model.config.image_seq_length = self._task.tokens_per_picture
        picture = [model.config.image_token_index] * self._task.tokens_per_picture
        spread = [x for token in prompt.ids for x in (picture if token == PICTURE else [token])]
        whole = torch.tensor([[*spread, *ids[:-1]]])
        found = model(
            input_ids=whole,
            pixel_values=torch.from_numpy(np.load(self._task.pixels)),
            attention_mask=torch.ones_like(whole),
            position_ids=torch.arange(whole.shape[1])[None],
        )
        return found.logits[0, -len(ids) :].float().numpy()

    def peak_bytes(self) -> int:
        """See `Peer`."""
        return peak_of()

    def close(self) -> None:
        """See `Peer`."""

    def _unseen_picture(self) -> Any:
        """The picture, each time rolled by another column or row (docs/sources/peers.md#openvino)."""
        self._answers += 1
        by = divmod(self._answers, self._pixels.shape[2])
        return self._openvino.Tensor(self._np.roll(self._pixels, by, axis=(1, 2)))

    def _generate(self, text: str, pictures: list[Any]) -> Sample:
        marks = Marks()
        streamer = _streamer(self._genai, marks)
        found = self._pipeline.generate(
            text, images=pictures, generation_config=self._settings, streamer=streamer
        )
        metrics = found.perf_metrics
        marks.spent_ms["tokenize"] = metrics.get_tokenization_duration().mean
        marks.spent_ms["vision"] = metrics.get_vision_encoding_duration().mean if pictures else 0.0
        marks.rest_is_prefill()
        return marks.sample(streamer.ids, prompt_tokens=metrics.get_num_input_tokens(), reused_tokens=None)


def _streamer(genai: Any, marks: Marks) -> Any:
    """What the pipeline tells of its tokens; its base class is the library's."""

    class Streamer(genai.StreamerBase):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.ids: list[int] = []

        def write(self, token: Any) -> Any:
            marks.mark_token()
            self.ids += token if isinstance(token, list) else [token]
            return genai.StreamingStatus.RUNNING

        def end(self) -> None:
            pass

    return Streamer()
