"""The user's conversations as a data set: each read, and made tokens and pixels, when it is asked for."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from tinyllava_edge.checkpoint.config import IGNORE_LABEL
from tinyllava_edge.checkpoint.nanovlm import is_nanovlm
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.errors import PromptError, RecordError, UnsupportedModelError
from tinyllava_edge.model.assets import read_assets
from tinyllava_edge.model.vlm import TinyLlava
from tinyllava_edge.prompt import Template, TextTokenizer, template_named

from .batches import Collator, Encoded, Fault, Sample
from .conversations import SYSTEM, BadRow, Conversation, sha256_of
from .data import PictureReader, encode_conversation, splice_labels
from .left_out import LeftOut
from .options import FinetuneOptions

TEXT, NO_ANSWER = "not Unicode", "no answer left"


@dataclass(kw_only=True)
class Samples(Dataset[Sample | Fault]):
    """Samples by their place in the list of records.

    A record that is left out is missing in its batch; a batch of such records alone has the next good one
    instead. So the batches do not depend on when a record turns out to be bad.

    Attributes:
        conversations: by number; None where there is none any more.
        limit: positions that are left of a conversation, `num_tokens` of each picture counted.
        num_tokens: positions of one picture; the most of its connector's budgets.
        budgets: the other ones.
        left_out: numbers of records that are not used.
        drawn: numbers of the records of an epoch, some maybe several times; None is each of them once.
        facts: what decides whether a record is bad, as JSON.
    """

    conversations: Mapping[int, Conversation | BadRow | None]
    tokenizer: TextTokenizer
    template: Template
    reader: PictureReader
    limit: int
    num_tokens: int
    budgets: tuple[int, ...] = ()
    left_out: LeftOut = field(default_factory=LeftOut)
    drawn: Sequence[int] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def numbers(self) -> list[int]:
        """Of the records, by place."""
        if self.drawn is None:
            return list(self.conversations)
        return [number for number in self.drawn if number not in self.left_out.before]

    @property
    def collator(self) -> Collator:
        """What makes batches of these samples."""
        return Collator(self.limit, self.num_tokens, self.reader.how.image_size, self.budgets)

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[Sample | Fault]:
        return (self[place] for place in range(len(self)))

    def __getitem__(self, place: int) -> Sample | Fault:
        return self.__getitems__([place])[0]

    def __getitems__(self, places: list[int]) -> list[Sample | Fault]:
        """The samples of a batch, and what its other records are left out for; no sample if all are."""
        found = [item for place in places for item in self._read(place)]
        if any(isinstance(item, Sample) for item in found):
            return found
        for offset in range(1, len(self)):
            found += self._read((places[-1] + offset) % len(self))
            if found and isinstance(found[-1], Sample):
                break
        return found

    def _read(self, place: int) -> Iterator[Sample | Fault]:
        """A sample or what is wrong with its record; nothing where that is left out."""
        number = self.numbers[place]
        conversation = self.conversations[number]
        if conversation is None or number in self.left_out:
            return
        try:
            if isinstance(conversation, BadRow):
                raise conversation.fault
            encoded = self.encode(conversation)
            yield Sample(encoded, [self.reader.read(picture) for picture in conversation.pictures])
        except RecordError as fault:
            yield Fault(number, fault.kind, str(fault))

    def lengths(self) -> list[int]:
        """Of each sample the words, below 0 where it has no picture; reads every record once.

        Source: docs/sources/tinyllava.md#grouped-batches.
        """
        found = {number: self._length(number) for number in dict.fromkeys(self.numbers)}
        return [found[number] for number in self.numbers]

    def _length(self, number: int) -> int:
        record = self.conversations[number]
        if not isinstance(record, Conversation):
            return -1
        words = max(1, sum(len(text.split()) for turn in record.turns for text in turn))
        return words if record.pictures else -words

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


def open_source(options: FinetuneOptions, path: Path) -> Checkpoint:
    """The checkpoint at `path`, as the options say how to read it."""
    return Checkpoint(
        path,
        sources=options.sources,
        template=options.chat_template,
        allow_pickle=options.allow_pickle,
        budgets=options.budgets,
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
    limit = options.training.model_max_length or config.tokenizer_max_length
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
        limit=limit,
        num_tokens=num_tokens,
        budgets=config.connector.budgets[1:],
        facts={
            "template": template.name,
            "limit": limit,
            "num_tokens": num_tokens,
            "tokenizer": [sha256_of(assets.tokenizer.tokenizer_json), assets.bos_id],
            "preprocessing": asdict(assets.preprocessing),
        },
    )
