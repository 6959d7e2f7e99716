"""The one exception tree of the project.

    SledError
    ├── ConfigError            a setting, file or argument that cannot be used       exit 2
    ├── MessageError           a payload that is not a valid message                 exit 1
    ├── LinkError              the broker cannot be reached or refused us            exit 3
    ├── BrokerError            the private broker could not be started               exit 3
    ├── ModelError             a model, tokenizer or engine cannot be used           exit 4
    │   ├── VocabularyMismatchError  draft and target do not share a vocabulary
    │   ├── MissingLibraryError  a model library of an optional install is not there
    │   └── RankLostError      a process of a target that several hold is gone      exit 7
    ├── SessionError           a session cannot go on                                exit 5
    └── ProvisioningError      an identity, bundle or fleet directory is unusable    exit 6

Each carries a sentence that says what happened, with which value, and `hint`: what to do next.
"""

from __future__ import annotations

from typing import ClassVar


class SledError(Exception):
    """Base of every error that SLED raises on purpose.

    Attributes:
        hint: one sentence or command to try next; empty when there is none.
        exit_code: what the CLI returns for it.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


def reason_of(error: Exception) -> str:
    """Why, in the operating system's own words where it has some: without number and file."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


class ConfigError(SledError):
    """A setting, file or command-line argument that cannot be used."""

    exit_code = 2


class MessageError(SledError):
    """A payload that is not a valid message of this protocol version.

    Attributes:
        reason: the refusal reason to answer with, one of `protocol.messages.RefusalReason`.
    """

    exit_code = 1

    def __init__(self, message: str, *, reason: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.reason = reason


class LinkError(SledError):
    """The broker cannot be reached, or it refused the connection.

    Attributes:
        is_retryable: False when trying again cannot help (bad certificate, not authorised).
    """

    exit_code = 3

    def __init__(self, message: str, *, is_retryable: bool = True, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.is_retryable = is_retryable


class BrokerError(SledError):
    """A Mosquitto that is missing, cannot start, or does not come up."""

    exit_code = 3


class ModelError(SledError):
    """A model, tokenizer or engine that cannot be loaded or used."""

    exit_code = 4


class VocabularyMismatchError(ModelError):
    """Draft and target do not share one vocabulary, so that token ids mean different things.

    Attributes:
        draft, target: names of the two models.
        draft_vocabulary, target_vocabulary: their vocabulary fingerprints.
    """

    def __init__(self, *, draft: str, target: str, draft_vocabulary: str, target_vocabulary: str) -> None:
        super().__init__(
            f"draft model {draft} (vocabulary {draft_vocabulary}) does not fit"
            f" target model {target} (vocabulary {target_vocabulary})",
            hint="choose a draft of the target's family: sled models list",
        )
        self.draft = draft
        self.target = target
        self.draft_vocabulary = draft_vocabulary
        self.target_vocabulary = target_vocabulary


class MissingLibraryError(ModelError):
    """A model library that only an optional install brings; the model itself may be all right."""


class RankLostError(ModelError):
    """Of the processes that hold one target together one is gone; the others are of no use without it."""

    exit_code = 7


class SessionError(SledError):
    """A session that cannot go on: refused for good, or bound to a target that is gone."""

    exit_code = 5


class ProvisioningError(SledError):
    """An identity, bundle, certificate or fleet directory that cannot be used."""

    exit_code = 6
