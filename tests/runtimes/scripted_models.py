"""Models that answer from a script, and count what they are made to compute."""

from collections.abc import Sequence
from typing import Any

from tests.runtimes import bundles
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.checkpoint.config import IMAGE_TOKEN_ID
from tinyllava_edge.errors import BackendError
from tinyllava_edge.prompt import TextTokenizer
from tinyllava_edge.runtimes.base import Segment
from tinyllava_edge.runtimes.model import Model
from tinyllava_edge.runtimes.scripted import ScriptedLanguage, ScriptedVision

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)


class CountingVision(ScriptedVision):
    """The scripted backend, counting the pictures it encodes."""

    encoded = 0

    def encode(self, pixels: Any) -> Any:
        self.encoded += len(pixels)
        return super().encode(pixels)


class CountingLanguage(ScriptedLanguage):
    """The scripted backend, recording what it evaluates; it fails at a given position."""

    fail_at: int | None = None
    failure: BaseException = BackendError("told to fail")

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.seen: list[int] = []  # ids, and -200 for each row of a picture

    def evaluate(self, segment: Segment, position: int, *, all_logits: bool = False) -> Any:
        if self.fail_at is not None and position + len(segment) > self.fail_at:
            raise self.failure
        self.seen += segment.tolist() if segment.ndim == 1 else [IMAGE_TOKEN_ID] * len(segment)
        return super().evaluate(segment, position, all_logits=all_logits)


def scripted_model(bundle: Bundle, answer: str | Sequence[int], context: int = bundles.CONTEXT) -> Model:
    """A model that answers every question with a text, or with ids."""
    tokenizer = TextTokenizer(bundles.llama_tokenizer(), bos_id=None)
    ids = tokenizer.encode_text(answer) if isinstance(answer, str) else answer
    spec = bundle.manifest.language
    language = CountingLanguage(
        ids,
        stop_id=bundles.EOS,
        vocab_size=spec.vocab_size,
        hidden_size=spec.hidden_size,
        context_length=context,
    )
    return Model(bundle, CountingVision(bundles.IMAGE_SIZE, bundles.NUM_TOKENS, spec.hidden_size), language)


def counts(model: Model) -> tuple[int, int]:
    """Pictures encoded and positions evaluated so far."""
    assert isinstance(model.vision, CountingVision)
    assert isinstance(model.language, CountingLanguage)
    return model.vision.encoded, len(model.language.seen)


def bundle_ids(text: str) -> list[int]:
    return TextTokenizer(bundles.llama_tokenizer(), bos_id=None).encode_text(text)
