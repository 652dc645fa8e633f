"""Errors that a user can mend.

    TinyLlavaEdgeError            the command prints it on one line and exits with code 2
    |-- CheckpointError           a checkpoint's files or keys are wrong
    |   `-- UnsupportedModelError     readable, but a part we do not know
    |-- BundleError               a bundle's manifest or files are wrong
    |-- ImageError                a picture cannot be read, or is over the limits
    |-- PromptError               turns and pictures do not fit together
    |   `-- ContextOverflowError      prompt + answer do not fit in the context
    |-- DataError                 training or evaluation data are wrong
    |-- ExportError               a part cannot be converted
    |-- BackendError              a runtime is not usable here
    |   `-- MissingExtraError         ... because a package is not installed
    |-- OutputExistsError         an output is there already, and --force was not given
    `-- UsageError                options that do not fit together

Every message says what was expected, what was found, where, and what to do. `assert` is for our own
invariants only.
"""


class TinyLlavaEdgeError(Exception):
    """Base of everything a user can mend."""


class CheckpointError(TinyLlavaEdgeError):
    """A checkpoint's files or keys are wrong."""


class UnsupportedModelError(CheckpointError):
    """The checkpoint is readable, but has a part that is not supported."""


class BundleError(TinyLlavaEdgeError):
    """A bundle's manifest or files are wrong."""


class ImageError(TinyLlavaEdgeError):
    """A picture cannot be read, or is over the limits."""


class PromptError(TinyLlavaEdgeError):
    """Turns and pictures do not fit together."""


class ContextOverflowError(PromptError):
    """Prompt and answer do not fit in the model's context."""


class DataError(TinyLlavaEdgeError):
    """Training or evaluation data are wrong."""


class ExportError(TinyLlavaEdgeError):
    """A part of the model cannot be converted."""


class BackendError(TinyLlavaEdgeError):
    """A runtime is not usable on this machine."""


class MissingExtraError(BackendError):
    """A runtime or stage needs a package that is not installed."""


class OutputExistsError(TinyLlavaEdgeError):
    """An output is there already, and `--force` was not given."""


class UsageError(TinyLlavaEdgeError):
    """Options that do not fit together."""
