"""What is expected of a bundle, as `export` stored it beside the model: for a device without torch."""

import numpy as np
import numpy.typing as npt

from tinyllava_edge.bundle import Bundle
from tinyllava_edge.image import open_picture
from tinyllava_edge.reference_tensors import read_reference_tensors

from .reference import Continuation, GreedyAnswer, PromptCase, TextCase
from .upstream_pixels import TrialPicture

Floats = npt.NDArray[np.float32]


class StoredReference:
    """Torch float32 tensors of a few pictures and prompts, written at export.

    Raises:
        BundleError: they are missing, damaged or impossible.
    """

    name = "torch float32, stored in the bundle"
    config = None

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._stored = read_reference_tensors(bundle)
        self.pictures = []
        for path in self._stored.pictures:
            file = path.read_bytes()
            self.pictures.append(TrialPicture(path.name, file, np.asarray(open_picture(file))))
        prompts = self._stored.prompts
        self.prompts = [PromptCase(prompt.name, prompt.turns, prompt.pictures) for prompt in prompts]
        self.texts = [
            TextCase(prompt.turns, None, prompt.input_ids, len(prompt.pictures)) for prompt in prompts
        ]
        self._answers = {
            prompt.name: GreedyAnswer(prompt.greedy_ids, np.array(prompt.greedy_margins, dtype=np.float64))
            for prompt in prompts
        }

    def at_tokens(self, tokens: int) -> "StoredReference":
        """What is stored of a budget of visual tokens; `Raises` as the class."""
        is_own = tokens == self._bundle.manifest.vision.num_tokens
        return self if is_own else StoredReference(self._bundle.at_tokens(tokens))

    def stop_ids(self) -> None:
        """Not stored."""

    def pixels(self, picture: int) -> Floats:
        """[3, height, width]."""
        return np.asarray(self._stored.pixels[picture])

    def tower(self, picture: int) -> Floats:
        """[tokens, vision hidden]."""
        return np.asarray(self._stored.tower[picture])

    def embeddings(self, picture: int) -> Floats:
        """[tokens, hidden]."""
        return np.asarray(self._stored.embeddings[picture])

    def logits(self, prompt: PromptCase) -> Floats:
        """[n, vocab]: of the prompt's last n positions."""
        return self._stored.logits[prompt.name]

    def continuation(self, prompt: PromptCase) -> Continuation | None:
        """Not stored; the prompt's own last positions stand behind its pictures too."""
        return None

    def greedy(self, prompt: PromptCase) -> GreedyAnswer:
        """The greedy answer, up to its end."""
        return self._answers[prompt.name]
