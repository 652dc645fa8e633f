"""What is expected: torch float32 on the checkpoint itself, transformers' pixels, upstream's ids."""

from collections.abc import Callable, Mapping
from copy import copy
from functools import cached_property, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from tinyllava_edge.checkpoint.config import IMAGE_MARKER
from tinyllava_edge.checkpoint.layouts import NANOVLM
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.errors import CheckpointError, ContextOverflowError, guarded
from tinyllava_edge.metrics import top1_margin

from .reference import Continuation, GreedyAnswer, PromptCase, TextCase, Turns
from .upstream_nanovlm import NanoVlmProcessor, NanoVlmTokenizer
from .upstream_pixels import ReferenceProcessor, picture_set
from .upstream_text import UpstreamTokenizer, conversations

if TYPE_CHECKING:
    import torch

    from tinyllava_edge.model.vlm import TinyLlava

Floats = npt.NDArray[np.float32]
Result = TypeVar("Result")
_RESULTS = "_results_of_"  # in front of the name of what `_remembered` keeps
PLAIN_TOWERS = ("siglip_vision_model", "clip_vision_model")


def _remembered(method: Callable[[Any, Any], Result]) -> Callable[[Any, Any], Result]:
    """Keep a method's results on the instance, so that they are freed with it."""

    @wraps(method)
    def call(self: Any, key: Any) -> Result:
        results = self.__dict__.setdefault(f"{_RESULTS}{method.__name__}", {})
        if key not in results:
            results[key] = method(self, key)
        found: Result = results[key]
        return found

    return call


class CheckpointReference:
    """Torch float32 on the checkpoint itself, transformers' pixels, sentencepiece's ids.

    Args:
        checkpoint: with the prompt template, where it was chosen at export.
        num_tokens: tokens of each continuation.

    Raises:
        CheckpointError: a file is missing or damaged.
    """

    def __init__(self, checkpoint: Checkpoint, *, num_tokens: int = 128) -> None:
        from tinyllava_edge.model.vlm import load_model

        self.name = f"torch float32 of {checkpoint}"
        self.config = checkpoint.config
        self.model: TinyLlava = load_model(checkpoint)
        self._language: Any = self.model.language_model
        vision, language = self.config.vision, self.config.language
        is_nanovlm = checkpoint.layout == NANOVLM
        self.processor: ReferenceProcessor | NanoVlmProcessor = (
            NanoVlmProcessor(checkpoint.raw_config)
            if is_nanovlm
            else ReferenceProcessor(checkpoint.folders(vision.name_or_path), self.config)
        )
        folder = _tokenizer_folder(checkpoint.folders(language.name_or_path))
        with guarded(f"{folder}: the tokenizer", CheckpointError):
            self.tokenizer: UpstreamTokenizer | NanoVlmTokenizer = (
                NanoVlmTokenizer(folder, checkpoint.raw_config) if is_nanovlm else UpstreamTokenizer(folder)
            )
        marked = checkpoint.line is not None and checkpoint.raw_config.get("mm_use_im_start_end")
        self._picture = f"<im_start>{IMAGE_MARKER}<im_end>" if marked else IMAGE_MARKER
        self.pictures = picture_set(vision.image_size)
        self.prompts: tuple[PromptCase, ...] = PROMPTS
        self.num_tokens = num_tokens

    def at_tokens(self, tokens: int) -> "CheckpointReference":
        """The same weights at one of the connector's budgets; what none changes is not computed again."""
        if self.config.connector.budgets[1:] == ():
            return self
        other = copy(self)
        for name in [each for each in vars(other) if each.startswith(_RESULTS)]:
            if name.removeprefix(_RESULTS) not in ("pixels", "tower"):
                delattr(other, name)
        other.model = self.model.at_tokens(tokens)
        other.config = other.model.config
        return other

    @cached_property
    def texts(self) -> list[TextCase]:
        """Conversations of every kind, over two hundred."""
        return [self._text_case(tuple(turns)) for turns in conversations()]

    def _text_case(self, turns: Turns) -> TextCase:
        prompt = self.tokenizer.prompt(self.config.template, turns, picture=self._picture)
        return TextCase(turns, prompt, tuple(self.tokenizer.encode_prompt(prompt)))

    def stop_ids(self) -> set[int]:
        """Ids that end an answer."""
        return self.tokenizer.stop_ids(self.config.template, self.config.language.eos_token_ids)

    @_remembered
    def pixels(self, picture: int) -> Floats:
        """[3, height, width]."""
        return self.processor.pixels(self.pictures[picture].upright)

    @_remembered
    def tower(self, picture: int) -> Floats:
        """[tokens, vision hidden]: the selected layer, token policy applied."""
        import torch

        with torch.no_grad():
            rows: Floats = self.model.vision_tower(torch.from_numpy(self.pixels(picture))[None])[0].numpy()
        return rows

    def hidden_states(self, picture: int) -> list[Floats]:
        """Of every layer, the embeddings' output first: [tokens, vision hidden], token policy applied.

        Empty for a tower that is not one plain transformers model.
        """
        import torch

        if self.config.vision.architecture not in PLAIN_TOWERS or self.config.second_vision is not None:
            return []
        pixels = torch.from_numpy(self.pixels(picture))[None]
        with torch.no_grad():
            output = self.model.vision_tower.model(pixel_values=pixels, output_hidden_states=True)
        first = int(self.config.vision.drop_first)
        return [state[0, first:].numpy() for state in output.hidden_states]

    @_remembered
    def embeddings(self, picture: int) -> Floats:
        """[tokens, hidden]: connector output."""
        import torch

        with torch.no_grad():
            rows: Floats = self.model.connector(torch.from_numpy(self.tower(picture))[None])[0].numpy()
        return rows

    def ids(self, prompt: PromptCase) -> tuple[int, ...]:
        """Token ids, -200 for each picture."""
        return self._text_case(prompt.turns).ids

    @_remembered
    def splice(self, prompt: PromptCase) -> Floats:
        """[positions, hidden]: the language model's input rows."""
        return self.splice_with(self.embedding_table(), prompt)

    def embedding_table(self) -> Floats:
        """[vocab, hidden]."""
        table: Floats = self._language.get_input_embeddings().weight.detach().numpy()
        return table

    def splice_with(self, table: Floats, prompt: PromptCase) -> Floats:
        """Input rows [positions, hidden], text from another table of embeddings."""
        pictures = iter(prompt.pictures)
        rows = [
            self.embeddings(next(pictures)) if token < 0 else table[token : token + 1]
            for token in self.ids(prompt)
        ]
        assert next(pictures, None) is None, f"{prompt.name}: more pictures than placeholders"
        return np.concatenate(rows)

    @_remembered
    def logits(self, prompt: PromptCase) -> Floats:
        """[positions, vocab]."""
        import torch

        return self.logits_with({}, torch.from_numpy(self.splice(prompt)))

    @_remembered
    def continuation(self, prompt: PromptCase) -> Continuation:
        """A continuation sampled at temperature 1, which is nearer to text than a greedy loop is."""
        import torch

        seed = torch.Generator().manual_seed(sum(prompt.name.encode()))

        def sample(logits: torch.Tensor) -> int:
            return int(torch.multinomial(logits.softmax(-1), 1, generator=seed))

        return self._continue(prompt, sample)

    @_remembered
    def greedy(self, prompt: PromptCase) -> GreedyAnswer:
        """The greedy continuation; end-of-answer tokens do not stop it."""
        answer = self._continue(prompt, lambda logits: int(logits.argmax()))
        return GreedyAnswer(answer.ids, top1_margin(answer.logits))

    def _continue(
        self, prompt: PromptCase, choose: "Callable[[torch.Tensor], int]", num_tokens: int | None = None
    ) -> Continuation:
        import torch
        from transformers import DynamicCache

        from tinyllava_edge.model.language_model import continued_logits

        rows = torch.from_numpy(self.splice(prompt))[None]
        ids: list[int] = []
        chosen_from: list[torch.Tensor] = []
        cache = DynamicCache()
        holds = self.config.language.max_position_embeddings
        room = holds - rows.shape[1]
        if room < 1:
            raise ContextOverflowError(
                f"prompt {prompt.name} has {rows.shape[1]} positions, and the model was made for {holds}: "
                "no answer can follow it, so none can be compared. Is max_position_embeddings right?"
            )
        with torch.no_grad():
            for _ in range(min(num_tokens or self.num_tokens, room)):
                chosen_from.append(continued_logits(self._language, rows, cache)[0, -1])
                ids.append(choose(chosen_from[-1]))
                rows = self._language.get_input_embeddings()(torch.tensor([ids[-1:]]))
        return Continuation(tuple(ids), torch.stack(chosen_from).numpy())

    def logits_with(self, parameters: "Mapping[str, torch.Tensor]", rows: "torch.Tensor") -> Floats:
        """Logits [positions, vocab] of input rows [positions, hidden], with other parameters where given."""
        import torch

        with torch.no_grad():
            output = torch.func.functional_call(
                self._language, dict(parameters), kwargs={"inputs_embeds": rows[None]}
            )
        logits: Floats = output.logits[0].numpy()
        return logits


def _tokenizer_folder(folders: list[Path]) -> Path:
    for folder in folders:
        if any((folder / name).exists() for name in ("tokenizer.model", "tokenizer.json", "vocab.json")):
            return folder
    raise CheckpointError(
        f"no tokenizer files in {', '.join(map(str, folders))}. Give --sources DIR, as to export."
    )


def _asked(*questions: str) -> Turns:
    """Turns that were answered, but for the last."""
    return (*((question, "A small thing.") for question in questions[:-1]), (questions[-1], None))


# Positions of `pictures`: see reference_pixels.picture_set.
PROMPTS = (
    PromptCase("question", _asked(f"{IMAGE_MARKER}\nWhat is this?"), (0,)),
    PromptCase("two turns", _asked(f"{IMAGE_MARKER}\nDescribe the picture.", "Which colour has it?"), (3,)),
    PromptCase("text only", _asked("What is two plus two?"), ()),
    PromptCase("two pictures", _asked(f"{IMAGE_MARKER}\nWhat is it?", f"{IMAGE_MARKER}\nAnd this?"), (1, 15)),
    PromptCase(
        "small picture", _asked(f"{IMAGE_MARKER}\nIs there anything in the picture? Say yes or no."), (4,)
    ),
)
