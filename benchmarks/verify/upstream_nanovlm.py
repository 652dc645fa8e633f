"""nanoVLM's prompts, ids and pixels, written again so that `prompt.py` and `image.py` are not their judge.

The chat template is config.json's own, rendered by Jinja; a picture is as many image tokens as upstream
writes, and all of a prompt is tokenized at once. Source: docs/sources/nanovlm.md. Checked against upstream's
own ids and pixels in tests/benchmarks/verify/test_upstream_nanovlm.py.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
from PIL import Image

from tinyllava_edge.checkpoint.files import read_json_object

from .upstream_pixels import resize_as_pillow_13
from .upstream_text import IMAGE, IMAGE_ID, Turn, merges_in, without_marker

Pixels = npt.NDArray[np.float32]


class NanoVlmTokenizer:
    """Prompts and token ids; attributes as of `UpstreamTokenizer`.

    Args:
        directory: of the language model's tokenizer.json, which upstream adds its tokens to.
        raw: config.json.
    """

    def __init__(self, directory: Path, raw: Mapping[str, Any]) -> None:
        from transformers import AddedToken, PreTrainedTokenizerFast

        make: Any = PreTrainedTokenizerFast
        settings = read_json_object(directory / "tokenizer_config.json")
        roles = {name: _text(settings[name]) for name in ("bos_token", "eos_token") if settings.get(name)}
        self._tokenizer = make(tokenizer_file=str(directory / "tokenizer.json"), **roles)
        self._extra: dict[str, str] = raw.get("vlm_extra_tokens") or {}
        self._tokenizer.add_tokens([AddedToken(text, special=True) for text in self._extra.values()])
        self._raw = raw
        self._chat = raw.get("lm_chat_template")
        self.pieces: list[str] = self._tokenizer.convert_ids_to_tokens(list(range(len(self._tokenizer))))
        self.bos_token_id: int | None = self._tokenizer.bos_token_id
        self.eos_id: int | None = self._tokenizer.eos_token_id
        starts = [] if self._chat else self._tokenizer.encode("", add_special_tokens=True)
        self.bos_id: int | None = starts[0] if starts else None
        self.scores: list[float] | None = None
        self.merges: list[str] | None = merges_in(directory)

    def prompt(self, template: str, turns: Sequence[Turn], *, picture: str = IMAGE) -> str:
        """The prompt of a conversation, `<image>` in the place of a picture's image tokens.

        Of several turns without a chat template, and of pictures in later turns, upstream has no prompt: ours
        put one turn behind the other, and a picture in front of its question.
        """
        del template, picture  # config.json says both
        asked = [(_picture(question, self._before()), without_marker(question), a) for question, a in turns]
        if not self._chat:
            eos = self._tokenizer.eos_token
            return "".join(f"{p}Question: {q} Answer:{'' if a is None else a + eos}" for p, q, a in asked)
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        messages = []
        for picture, question, answer in asked:
            messages.append({"role": "user", "content": picture + question})
            messages += [] if answer is None else [{"role": "assistant", "content": answer}]
        jinja = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        return jinja.from_string(self._chat).render(messages=messages, add_generation_prompt=True)

    def encode_prompt(self, prompt: str) -> list[int]:
        """Ids, -200 in the place of each picture."""
        image, length = self._extra.get("image_token"), self._raw.get("mp_image_token_length")
        if image is None or length is None:  # v0.1: rows are joined, not ids
            ids = [] if self.bos_id is None else [self.bos_id]
            for index, piece in enumerate(prompt.split(IMAGE)):
                ids += [IMAGE_ID] * bool(index) + self._tokenizer.encode(piece, add_special_tokens=False)
            return ids
        ids = self._tokenizer.encode(prompt.replace(IMAGE, image * length), add_special_tokens=not self._chat)
        return list(_collapsed(ids, self._tokenizer.convert_tokens_to_ids(image), length))

    def encode_jointly(self, prompt: str) -> list[int]:
        """A picture's tokens split the text: there is no such mistake to name."""
        return self.encode_prompt(prompt)

    def stop_ids(self, template: str, config_eos: Sequence[int]) -> set[int]:
        """Ids that end an answer: the tokenizer's EOS, and what the chat template puts behind one."""
        end = self._tokenizer.convert_tokens_to_ids("<|im_end|>") if self._chat else None
        return {token for token in (self.eos_id, end, *config_eos) if token is not None}

    def _before(self) -> str:
        """What `get_image_string` writes before the only tile."""
        if "max_img_size" not in self._raw:
            return ""
        return self._extra.get("global_image_token") or self._extra["r1c1"]


def _text(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token)


def _picture(question: str, before: str) -> str:
    return before + IMAGE if IMAGE in question else ""


def _collapsed(ids: Sequence[int], image: int, length: int) -> Iterator[int]:
    at = 0
    while at < len(ids):
        is_picture = list(ids[at : at + length]) == [image] * length
        yield IMAGE_ID if is_picture else ids[at]
        at += length if is_picture else 1


class NanoVlmProcessor:
    """`Resize` or `DynamicResize` to one tile, and `ToTensor`; no `Normalize`."""

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self._side = int(raw["vit_img_size"])
        self._filter = Image.Resampling.BICUBIC if "max_img_size" in raw else Image.Resampling.BILINEAR

    def settings(self) -> dict[str, Any]:
        """What it does, by the names of the manifest's preprocessing."""
        return {
            "aspect": "square",
            "resize": "stretch",
            "size": self._side,
            "crop": None,
            "resample": int(self._filter),
            "rescale_factor": 1 / 255,
            "mean": (0.0, 0.0, 0.0),
            "std": (1.0, 1.0, 1.0),
        }

    def pixels(self, upright: npt.NDArray[np.uint8]) -> Pixels:
        """[h, w, 3] uint8 -> [3, image_size, image_size] float32."""
        with patch.object(Image.Image, "resize", resize_as_pillow_13):
            small = Image.fromarray(upright).resize((self._side, self._side), self._filter)
        return np.asarray(small, dtype=np.float32).transpose(2, 0, 1) / np.float32(255)
