"""A bundle as a model of lmms-eval: `--model tinyllava_edge --model_args bundle=DIR,language=q8_0`.

Runs inside lmms-eval, in an environment of its own (`make test-lmms`), and is imported by that alone.
Its interface: docs/sources/measuring.md#lmms-eval.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms

from tinyllava_edge.console import progress
from tinyllava_edge.errors import UsageError
from tinyllava_edge.runtimes.model import open_bundle

MAX_TOKENS = 128  # where a task does not say
_TAKEN = {"max_new_tokens", "temperature", "top_p", "do_sample", "num_beams", "until"}
_SAID = {
    "image_aspect_ratio",
    "max_length",
    "pad_token_id",
    "use_cache",
}  # what other models take, and a bundle not


class TinyllavaEdge(lmms):  # type: ignore[misc]
    """Answers requests one by one, as `eval` asks: the bundle's own prompt, pictures before the text."""

    is_simple = True

    def __init__(
        self, bundle: str = "nano", batch_size: int | str = 1, device: str | None = None, **options: Any
    ):
        """Open a bundle.

        Args:
            bundle: its directory, or nano.
            batch_size: 1; lmms-eval passes it.
            device: lmms-eval's, without a meaning here: `runtime` says what computes.
            options: of `open_bundle`: runtime, vision, language, threads, context_length and so on.

        Raises:
            UsageError: another batch size.
            BundleError, BackendError: as `open_bundle`.
        """
        super().__init__()
        if int(batch_size or 1) != 1:
            raise UsageError(f"--batch_size {batch_size}: a bundle answers one question at a time; give 1.")
        options.pop("max_batch_size", None)
        self._model = open_bundle(bundle, **options)

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """An answer to each request: its text about its pictures."""
        answers = []
        with progress() as bar:
            for request in bar.track(requests, description="tinyllava-edge"):
                text, settings, doc_to_visual, doc_id, task, split = request.args
                pictures = [
                    shown for shown in doc_to_visual(self.task_dict[task][split][doc_id]) or () if shown
                ]
                answers.append(self._model.ask(text, pictures, **asked_with(settings)).strip())
        return answers

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Not offered: a task that scores given continuations is refused."""
        raise UsageError("a bundle has no loglikelihood: take tasks of output_type generate_until.")

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Not offered likewise."""
        raise UsageError("a bundle has no rounds: take tasks of output_type generate_until.")


def asked_with(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A task's `generation_kwargs` as settings of `Model.ask`.

    Raises:
        UsageError: they ask for beams, or for what is not known.
    """
    if unknown := settings.keys() - _TAKEN - _SAID:
        raise UsageError(
            f"generation_kwargs {', '.join(sorted(unknown))}: a bundle takes {', '.join(sorted(_TAKEN))}."
        )
    if (settings.get("num_beams") or 1) != 1:
        raise UsageError(f"num_beams {settings['num_beams']}: a bundle decodes without beams; give 1.")
    drawn = float(settings.get("temperature") or 0) if settings.get("do_sample", True) else 0.0
    found: dict[str, Any] = {
        "max_tokens": int(settings.get("max_new_tokens") or MAX_TOKENS),
        "temperature": drawn,
    }
    if drawn and settings.get("top_p"):
        found["top_p"] = float(settings["top_p"])
    until = settings.get("until") or ()
    found["stop"] = [until] if isinstance(until, str) else list(until)
    return found
