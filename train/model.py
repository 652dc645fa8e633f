"""A model as transformers' Trainer takes it: batches of samples in, the loss out."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's usual name
from torch import nn

from tinyllava_edge.checkpoint.config import IMAGE_TOKEN_ID
from tinyllava_edge.errors import UsageError
from tinyllava_edge.model.vlm import TinyLlava

_PREFIX = "model."
Batch = Mapping[str, torch.Tensor]


class TinyLlavaForTraining(nn.Module):
    """The three parts of a `TinyLlava`, with a loss over the learned positions only.

    Args:
        model: the parts.
        teacher: what `model` is to say the same as, in the place of the labels.

    Attributes:
        model: the parts.
        teachers: none or one, which is no part of this module and so of none of its states.
        accepts_loss_kwargs: the loss is divided by what the Trainer counts over all batches of a step.
    """

    accepts_loss_kwargs = True
    _keys_to_ignore_on_save = None  # the Trainer asks for it

    def __init__(self, model: TinyLlava, teacher: TinyLlava | None = None) -> None:
        super().__init__()
        self.model = model
        self.teachers = () if teacher is None else (TinyLlavaForTraining(teacher).eval(),)

    def forward(
        self,
        input_ids: torch.Tensor,
        labels: torch.Tensor,
        learned: torch.Tensor,
        pixel_values: torch.Tensor,
        picture_rows: torch.Tensor,
        num_items_in_batch: torch.Tensor | int | None = None,
        budgets: Sequence[Batch] = (),
    ) -> dict[str, torch.Tensor]:
        """The loss of a batch of `Collator`: mean cross entropy over the labels, or distance to a teacher.

        `labels` are [batch, positions]; the sum is divided by `num_items_in_batch`, or by the labels of this
        batch where that is not given; the others are `learned_logits`'. `budgets` has the same samples with
        the connector's further budgets of visual tokens, in their order: then the loss is the mean over all
        (docs/sources/visual_tokens.md#nested-budgets).
        """
        count = len(learned) if num_items_in_batch is None else num_items_in_batch
        first = {"input_ids": input_ids, "labels": labels, "learned": learned, "picture_rows": picture_rows}
        batches = (first, *budgets)
        taught: Iterable[torch.Tensor | None] = [None] * len(batches)
        for teacher in self.teachers:
            taught = teacher.to(input_ids.device)._log_probabilities(pixel_values, batches)
        losses = [
            _summed_loss(logits.float(), batch, expected)
            for logits, batch, expected in zip(
                self._of_budgets(pixel_values, batches), batches, taught, strict=True
            )
        ]
        return {"loss": torch.stack(losses).mean() / count}

    @torch.no_grad()
    def _log_probabilities(self, pixel_values: torch.Tensor, batches: Sequence[Batch]) -> list[torch.Tensor]:
        """A teacher's [n, vocab], of each budget."""
        return [logits.float().log_softmax(-1) for logits in self._of_budgets(pixel_values, batches)]

    def _of_budgets(self, pixel_values: torch.Tensor, batches: Sequence[Batch]) -> Iterator[torch.Tensor]:
        """The logits [n, vocab] of each of the connector's budgets."""
        features = self.model.vision_tower(pixel_values)
        numbers = self.model.config.connector.budgets or (None,)
        for number, batch in zip(numbers, batches, strict=True):
            connector = self.model.connector
            rows = connector(features) if number is None else connector(features, number)
            yield self._logits(rows, batch["input_ids"], batch["learned"], batch["picture_rows"])

    def learned_logits(
        self,
        input_ids: torch.Tensor,
        learned: torch.Tensor,
        pixel_values: torch.Tensor,
        picture_rows: torch.Tensor,
    ) -> torch.Tensor:
        """The logits [n, vocab] that predict labels.

        Args:
            input_ids: [batch, positions]; -200 where a row of a picture stands. Padding is on the right, and
                attention looks left only, so no mask is needed.
            learned: [n] which of the batch * positions hidden states predict a label.
            pixel_values: [pictures, 3, height, width]; of text alone one of zeros, which keeps tower and
                connector in every process's graph, and which nothing reads, as upstream does.
            picture_rows: [m] which of the pictures * tokens rows stand at the -200, in their order.
        """
        return self._logits(self.model.encode(pixel_values), input_ids, learned, picture_rows)

    def _logits(
        self,
        embeddings: torch.Tensor,
        input_ids: torch.Tensor,
        learned: torch.Tensor,
        picture_rows: torch.Tensor,
    ) -> torch.Tensor:
        language: Any = self.model.language_model
        rows = language.get_input_embeddings()(input_ids.clamp(min=0))  # [batch, positions, hidden]
        pictures = embeddings.flatten(0, 1).index_select(0, picture_rows)
        rows = rows.masked_scatter((input_ids == IMAGE_TOKEN_ID)[..., None], pictures.to(rows.dtype))
        with _at_positions(output_layer(language), learned):
            logits: torch.Tensor = language(inputs_embeds=rows, use_cache=False).logits[0]
        return logits

    def learned_parameters(self) -> dict[str, nn.Parameter]:
        """What is trained, by its name in the `TinyLlava`."""
        named = self.model.named_parameters()
        return {name: parameter for name, parameter in named if parameter.requires_grad}

    @property
    def layer_classes(self) -> list[str]:
        """Classes of the layers that are here, which FSDP shards one by one: transformers' own lists."""
        found: set[str] = set()
        for module in self.model.modules():
            found |= set(getattr(module, "_no_split_modules", None) or ())
        present = {type(module).__name__ for module in self.model.modules()}
        return sorted(found & present)

    @property
    def _no_split_modules(self) -> list[str]:
        """Their name in accelerate."""
        return self.layer_classes

    def checkpoint_activations(self) -> None:
        """Keep the input of each layer alone, and compute the layer again when its gradient is asked for."""
        module: Any
        for module in self.model.modules():
            if getattr(module, "supports_gradient_checkpointing", False):
                new = getattr(module, "activation_checkpointing_enable", None)  # transformers 5.24 renamed it
                (new or module.gradient_checkpointing_enable)({"use_reentrant": False})
            elif hasattr(module, "checkpoints_layers"):  # OpenELM
                module.checkpoints_layers = True

    def set_attention(self, implementation: str) -> None:
        """Have transformers' models compute attention so.

        Raises:
            UsageError: one of them cannot, or a package that it needs is missing.
        """
        module: Any
        for module in self.model.modules():
            if not hasattr(module, "set_attn_implementation"):
                continue
            try:
                module.set_attn_implementation(implementation)
            except (ImportError, ValueError) as error:
                raise UsageError(
                    f"--attention {implementation}: {type(module).__name__} does not take it here "
                    f"({str(error).splitlines()[0]:.200}). Give sdpa, or leave it to auto."
                ) from None


def _summed_loss(logits: torch.Tensor, batch: Batch, taught: torch.Tensor | None) -> torch.Tensor:
    """Over all labels; of a teacher at temperature 1, in nats (Hinton et al., arXiv 1503.02531)."""
    if taught is not None:
        return F.kl_div(logits.log_softmax(-1), taught, reduction="sum", log_target=True)
    targets = batch["labels"].flatten().index_select(0, batch["learned"] + 1)
    return F.cross_entropy(logits, targets, reduction="sum")


def plain_name(name: str) -> str:
    """A parameter's name in the `TinyLlava`, of that in what wraps it."""
    for part in ("vision_tower.", "connector.", "language_model."):
        if (start := f".{name}".find(f".{part}")) >= 0:
            return (
                name[start:].replace("_fsdp_wrapped_module.", "").replace("_checkpoint_wrapped_module.", "")
            )
    return name


def output_layer(language: Any) -> nn.Module:
    """The head of a causal language model."""
    head: nn.Module = (
        language.get_output_embeddings() if hasattr(language, "get_output_embeddings") else language.lm_head
    )
    return head


@contextmanager
def _at_positions(head: nn.Module, positions: torch.Tensor) -> Iterator[None]:
    """Let the head see the hidden states at some positions alone: [batch, positions, h] -> [1, n, h].

    A hook, since each family does something of its own behind its head (Gemma-2 caps the logits).
    """

    def gather(_: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return args[0].flatten(0, 1).index_select(0, positions)[None], *args[1:]

    handle = head.register_forward_pre_hook(gather)
    try:
        yield
    finally:
        handle.remove()
