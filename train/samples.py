"""The user's conversations as the batches of a run, each a function of seed and step alone."""

import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tinyllava_edge.checkpoint.config import IGNORE_LABEL
from tinyllava_edge.checkpoint.nanovlm import is_nanovlm
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.errors import DataError, PromptError, RecordError, UnsupportedModelError
from tinyllava_edge.model.assets import read_assets
from tinyllava_edge.model.vlm import TinyLlava
from tinyllava_edge.prompt import Template, TextTokenizer, template_named

from .conversations import SYSTEM, BadRow, Conversation, sha256_of
from .data import Batch, PictureReader, encode_conversation, splice_labels
from .left_out import LeftOut
from .options import FinetuneOptions

TEXT, NO_ANSWER = "not Unicode", "no answer left"


class Encoded(NamedTuple):
    """A conversation as a model takes it, before it is cut."""

    ids: list[int]
    labels: list[int]
    positions: int  # the pictures' counted


@dataclass(kw_only=True)
class Samples:
    """Batches in a new random order every epoch; the last one of an epoch may be small.

    A record that is left out is missing in its batch; a batch of such records alone has the next good one of
    the epoch in their place. So the batches do not depend on when a record turns out to be bad.

    Attributes:
        conversations: by number; None where there is none any more.
        limit: positions that are left of a conversation, `num_tokens` of each picture counted.
        num_tokens: positions of one picture.
        seed: of the order.
        left_out: numbers of records that are not used.
        facts: what decides whether a record is bad, as JSON.
    """

    conversations: Mapping[int, Conversation | BadRow | None]
    tokenizer: TextTokenizer
    template: Template
    reader: PictureReader
    batch_size: int
    limit: int
    num_tokens: int
    seed: int
    left_out: LeftOut = field(default_factory=LeftOut)
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which every conversation is seen once."""
        return -(-len(self.conversations) // self.batch_size)

    def batch(self, step: int) -> Batch:
        """The batch of a step, counted from 0.

        Raises:
            RecordError: a record is bad, and such are not to be left out.
            DataError: all records are left out.
        """
        epoch, index = divmod(step, self.steps_per_epoch)
        order = list(self.conversations)
        random.Random(f"{self.seed} {epoch}").shuffle(order)
        start, end = index * self.batch_size, (index + 1) * self.batch_size
        chosen = list(self._usable(order[start:end]))
        if not chosen:
            chosen = list(islice(self._usable(order[end:] + order[:start]), 1))
        if not chosen:
            raise DataError("no record is left to train on: all of them are bad.")
        pictures = [picture for _, pixels in chosen for picture in pixels]
        return Batch(
            ids=[encoded.ids for encoded, _ in chosen],
            labels=[encoded.labels for encoded, _ in chosen],
            pixels=torch.stack(pictures) if pictures else torch.zeros(0),
        )

    def encode(self, conversation: Conversation) -> Encoded:
        """Token ids and labels of a conversation.

        Raises:
            RecordError: its text is no text, the template has no place for its system text, or none of its
                answers is within the limit.
        """
        template = self.template
        try:
            if conversation.system:
                template = template.with_system(conversation.system)
        except PromptError as error:
            raise RecordError(SYSTEM, f"has a system text, and {error}") from None
        try:
            ids, labels = encode_conversation(self.tokenizer, template, conversation.turns)
        except PromptError as error:
            raise RecordError(TEXT, str(error)) from None
        spliced = splice_labels(ids, labels, self.num_tokens)
        if all(label == IGNORE_LABEL for label in spliced[: self.limit]):
            raise RecordError(
                NO_ANSWER,
                f"no answer within the first {self.limit} positions, the tokenizer's maximum length: the "
                f"conversation has {len(spliced)}. Shorten the question.",
            )
        return Encoded(ids, labels, len(spliced))

    def _usable(self, numbers: Iterable[int]) -> Iterator[tuple[Encoded, list[torch.Tensor]]]:
        """Encoded conversations and their pixels, without those that are left out."""
        for number in numbers:
            conversation = self.conversations[number]
            if conversation is None or number in self.left_out:
                continue
            try:
                if isinstance(conversation, BadRow):
                    raise conversation.fault
                encoded = self.encode(conversation)
                pixels = [self.reader.read(picture) for picture in conversation.pictures]
            except RecordError as fault:
                self.left_out.meet(number, conversation, fault)
            else:
                yield encoded, pixels


def open_source(options: FinetuneOptions, path: Path) -> Checkpoint:
    """The checkpoint at `path`, as the options say how to read it."""
    return Checkpoint(
        path, sources=options.sources, template=options.chat_template, allow_pickle=options.allow_pickle
    )


def open_samples(source: Checkpoint, options: FinetuneOptions) -> Samples:
    """Samples without conversations yet: what a checkpoint says of them; its weights are not read.

    Raises:
        CheckpointError: tokenizer or processor files are missing or damaged.
    """
    if is_nanovlm(source.raw_config):  # no config.json of TinyLLaVA Factory can say what it says
        raise UnsupportedModelError(
            f"{source.config_path}: a checkpoint of nanoVLM is exported, but not trained here. Train it with "
            "its own code."
        )
    config, assets = source.config, read_assets(source)
    size = assets.preprocessing.image_size
    with torch.device("meta"), torch.no_grad():  # a resampler's positions are not the tower's
        num_tokens = TinyLlava(config).encode(torch.zeros(1, 3, size, size)).shape[1]
    template = template_named(options.template or config.template)
    if assets.template.picture != template.picture:  # no config.json of TinyLLaVA Factory can say it
        raise UnsupportedModelError(
            f"{source.config_path}: mm_use_im_start_end: tokens around a picture are read, but not trained."
        )
    return Samples(
        conversations={},
        tokenizer=assets.text_tokenizer(),
        template=template,
        reader=PictureReader(assets.preprocessing),
        batch_size=options.training.per_device_train_batch_size,
        limit=config.tokenizer_max_length,
        num_tokens=num_tokens,
        seed=options.training.seed,
        facts={
            "template": template.name,
            "limit": config.tokenizer_max_length,
            "num_tokens": num_tokens,
            "tokenizer": [sha256_of(assets.tokenizer.tokenizer_json), assets.bos_id],
            "preprocessing": asdict(assets.preprocessing),
        },
    )
