"""A SentencePiece BPE vocabulary -> `tokenizers`, with the ids of the slow Llama and Gemma tokenizers.

The converters of transformers give other ids at leading and double spaces; these do not.
"""

import math
from enum import IntEnum
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from tinyllava_edge.checkpoint.files import read_small_file
from tinyllava_edge.errors import CheckpointError, MissingExtraError

MAX_PIECE = 512  # characters; the time to find all merges grows with their square
SPACE = "\u2581"  # SentencePiece writes a space so


class PieceType(IntEnum):
    """`SentencePiece.Type` of sentencepiece_model.proto."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


def tokenizer_from_sentencepiece(path: Path, settings: dict[str, Any]) -> Tokenizer:
    """Build the tokenizer of a `tokenizer.model`.

    Args:
        path: the SentencePiece model; BPE with byte fallback.
        settings: what tokenizer_config.json says.

    Raises:
        CheckpointError: not a SentencePiece model, or not of that kind.
    """
    proto = read_sentencepiece(path)
    pieces = {piece.piece: index for index, piece in enumerate(proto.pieces)}
    types = [PieceType(piece.type) for piece in proto.pieces]
    unknown = proto.pieces[types.index(PieceType.UNKNOWN)].piece
    tokenizer = Tokenizer(
        models.BPE(
            vocab=pieces,
            merges=_merges(proto),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    takes_marks = takes_marks_for_spaces(settings)
    tokenizer.normalizer = normalizers.Replace(*((SPACE, " ") if takes_marks else (" ", SPACE)))
    steps: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    before = [_marks()] if takes_marks else []
    if proto.normalizer_spec.add_dummy_prefix and settings.get("add_prefix_space", True) is not False:
        before += _space_prefix(legacy=bool(settings.get("legacy", True)))
        steps.append(decoders.Strip(" ", 1, 0))
    if before:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(before)
    tokenizer.decoder = decoders.Sequence(steps)
    stripping = {token["content"]: _stripping(token) for token in _decoder(settings)}
    for index, kind in enumerate(types):
        text = proto.pieces[index].piece
        if kind in (PieceType.CONTROL, PieceType.UNKNOWN):
            flags = stripping.get(text, {})
            tokenizer.add_special_tokens([AddedToken(text, normalized=takes_marks, special=True, **flags)])
        elif kind is PieceType.USER_DEFINED:  # found in the text before any merge, spaces already marked
            tokenizer.add_tokens([AddedToken(text, normalized=True, special=False)])
    if settings.get("add_bos_token", True):
        bos_id = proto.trainer_spec.bos_id
        if not 0 <= bos_id < len(types) or types[bos_id] != PieceType.CONTROL:
            raise CheckpointError(f"{path}: its BOS id {bos_id} is no control token of {len(types)} pieces.")
        bos = proto.pieces[bos_id].piece
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, bos_id)]
        )
    return tokenizer


def read_sentencepiece(path: Path) -> Any:
    """The `ModelProto` of a BPE vocabulary, its pieces checked.

    Raises:
        CheckpointError: damaged, or of another kind.
        MissingExtraError: sentencepiece, or protobuf that it needs, is not installed.
    """
    try:
        from sentencepiece import sentencepiece_model_pb2
    except ImportError:
        raise MissingExtraError(
            f"{path}: it needs two packages to be read: pip install sentencepiece protobuf"
        ) from None
    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined] # generated, untyped
    data = read_small_file(path)
    try:
        proto.ParseFromString(data)
        fault = _fault_of(proto.pieces)
    except Exception as error:  # protobuf's own exception type depends on its implementation
        raise CheckpointError(f"{path}: not a SentencePiece model ({type(error).__name__}).") from None
    if fault:
        raise CheckpointError(f"{path}: damaged SentencePiece model: {fault}. Copy it again.")
    kinds = [piece.type for piece in proto.pieces]
    is_bpe = proto.trainer_spec.model_type == 2
    if not is_bpe or PieceType.BYTE not in kinds or kinds.count(PieceType.UNKNOWN) != 1:
        raise CheckpointError(f"{path}: expected a SentencePiece model of kind BPE with byte fallback.")
    if proto.normalizer_spec.name != "identity" or proto.normalizer_spec.remove_extra_whitespaces:
        raise CheckpointError(f"{path}: a SentencePiece model that normalises text is not supported.")
    return proto


def _fault_of(pieces: Any) -> str | None:
    """What no trained vocabulary has: its library says of few of these why, and of some nothing."""
    known: set[str] = set()
    for index, piece in enumerate(pieces):
        if piece.type not in list(PieceType):
            return f"piece {index} is of type {piece.type}"
        if not 0 < len(piece.piece) <= MAX_PIECE:
            return f"piece {index} has {len(piece.piece)} characters, expected 1 to {MAX_PIECE}"
        if piece.piece in known:
            return f"piece {piece.piece!r} is there twice"
        if not math.isfinite(piece.score):
            return f"piece {piece.piece!r} has the score {piece.score}"
        known.add(piece.piece)
    return None


def takes_marks_for_spaces(settings: dict[str, Any]) -> bool:
    """Whether a token takes the space marks beside it with it, as the text's spaces that they then are.

    Without `legacy` transformers puts spaces in the place of marks before it looks for added tokens, one of
    which may strip the text beside it (docs/sources/llava_line.md#prompts).
    """
    return not settings.get("legacy", True) and any(map(_stripping, _decoder(settings)))


def _decoder(settings: dict[str, Any]) -> list[dict[str, Any]]:
    return list(settings.get("added_tokens_decoder", {}).values())


def _stripping(token: dict[str, Any]) -> dict[str, bool]:
    return {side: True for side in ("lstrip", "rstrip") if token.get(side)}


def _marks() -> Any:
    """Space marks for spaces."""
    return pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="never", split=False)


def _space_prefix(*, legacy: bool) -> list[Any]:
    """One space mark in front of the text, whatever it starts with.

    `Metaspace` alone would leave the mark out where the text starts with a space. With `legacy` every
    stretch after a special token gets one too (huggingface/transformers pull request 24565).
    """
    scheme = "always" if legacy else "first"
    return [pre_tokenizers.Metaspace(replacement=" ", prepend_scheme=scheme, split=False), _marks()]


def _merges(proto: Any) -> list[tuple[str, str]]:
    """Every pair of pieces that makes a piece, best score of the result first."""
    normal = {p.piece: (i, p.score) for i, p in enumerate(proto.pieces) if p.type == PieceType.NORMAL}
    found: list[tuple[float, int, int, str, str]] = []
    for piece, (_, score) in normal.items():
        for cut in range(1, len(piece)):
            left, right = normal.get(piece[:cut]), normal.get(piece[cut:])
            if left is not None and right is not None:
                found.append((-score, left[0], right[0], piece[:cut], piece[cut:]))
    return [(left, right) for *_, left, right in sorted(found)]
