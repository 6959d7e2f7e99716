"""What a device does with text: chats to token ids, token ids to text, by the vocabulary of a GGUF file.

Chats are rendered by the model's own chat template. What a person types can never become a control token:
such text is taken apart before the template sees it, and control tokens are looked for in the result only
where the template wrote them.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Literal, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from device_agent.vocabulary import Vocabulary
from protocol.errors import ModelError

ChatRole = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message of a conversation."""

    role: ChatRole
    content: str


_PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['content'] }}{% if not loop.last %}{{ '\\n' }}{% endif %}"
    "{% endfor %}"
)
"""For base models, which have no template and just continue a text."""

# Lone surrogates cannot occur in cleaned text, so these never meet what a person typed.
_GUARD = "\ud800"
"""Put inside of what spells a control token in a message; text is tokenised apart on either side."""
_ANSWER = "\ud801"
"""Stands for the assistant's message while its end is looked for."""
_GENERATION_TAG = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")
"""Marks the assistant's part for training; no Jinja tag."""


class ChatTokenizer:
    """Chats and text to token ids and back. Keeps nothing of a conversation; safe to share."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        """Compile the chat template.

        Raises:
            ModelError: the template is not valid Jinja.
        """
        self.vocabulary = vocabulary
        self.stop_ids = vocabulary.stop_ids
        source = _GENERATION_TAG.sub("", vocabulary.chat_template or _plain_template(vocabulary))
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise self._template_error(error) from error
        self._control = _alternatives(vocabulary.control_tokens)
        # Some files mark tokens of their template as ordinary user-defined ones: these are guarded too.
        in_template = {token for token in vocabulary.user_defined_tokens if token in source}
        self._guarded = _alternatives({*vocabulary.control_tokens, *in_template})

    def opening(self, messages: Sequence[ChatMessage]) -> list[int]:
        """The prompt of a conversation, up to where the assistant's answer begins.

        Equal to tokenising the rendered template in one go, except where a message spells a control token:
        that stays text.

        Raises:
            ModelError: the template refuses these messages (such as two user messages in a row).
        """
        return self._encode(self._render(messages))

    def next_turn(self, user_text: str, last_token: int) -> list[int]:
        """The tokens of the user's next turn, up to where the assistant's next answer begins.

        Appended to a conversation, they continue exactly after what was generated: the end of the
        assistant's message comes first, unless `last_token` already is one.

        Args:
            last_token: the last token of the conversation so far.

        Raises:
            ModelError: the template cannot render a second turn.
        """
        before = [{"role": "user", "content": "."}, {"role": "assistant", "content": _ANSWER}]
        rendered = self._render([ChatMessage("user", user_text)], before)
        _, found, rest = rendered.rpartition(_ANSWER)
        if not found:
            raise ModelError(
                f"the chat template of {self.vocabulary.model} drops earlier answers",
                hint="start a new conversation for every question with this model",
            )
        tokens = self._encode(rest)
        if last_token in self.stop_ids and tokens and tokens[0] in self.stop_ids:
            return tokens[1:]
        return tokens

    def encode(self, text: str) -> list[int]:
        """The tokens of plain text; control tokens in it are text."""
        return self._encode_plain(self._guard(text))

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of `tokens`, control tokens left out, broken characters replaced by U+FFFD."""
        stream = self.stream()
        return stream.feed(tokens) + stream.finish()

    def transcript(self, tokens: Sequence[int]) -> str:
        """The text of a conversation; what control tokens set apart stands in paragraphs of its own.

        It ends where more text of its last part would go on: in a new paragraph after a control token.
        """
        control = frozenset(self.vocabulary.control_tokens.values())
        runs = [
            self.decode(run) for is_control, run in groupby(tokens, control.__contains__) if not is_control
        ]
        text = "\n\n".join(part.strip("\n") for part in runs if part.strip())
        return f"{text}\n\n" if tokens and tokens[-1] in control else text

    def stream(self) -> TextStream:
        """A fresh decoder for one answer."""
        return TextStream(self.vocabulary)

    def _render(self, messages: Sequence[ChatMessage], before: Sequence[Mapping[str, str]] = ()) -> str:
        guarded = [{"role": message.role, "content": self._guard(message.content)} for message in messages]
        try:
            return self._template.render(
                messages=[*before, *guarded],
                add_generation_prompt=True,
                bos_token=self.vocabulary.bos_text,
                eos_token=self.vocabulary.eos_text,
            )
        except (
            jinja2.TemplateError,
            ArithmeticError,
            AttributeError,
            LookupError,
            TypeError,
            ValueError,
        ) as error:
            raise self._template_error(error) from error

    def _guard(self, text: str) -> str:
        """`text` as valid Unicode, with a guard inside every control token that it spells."""
        text = text.encode("utf-8", "replace").decode("utf-8")
        while (safe := self._guarded.sub(_split_by_guard, text)) != text:
            text = safe
        return text

    def _encode(self, rendered: str) -> list[int]:
        tokens: list[int] = []
        end = 0
        for match in self._control.finditer(rendered):
            tokens += self._encode_plain(rendered[end : match.start()])
            tokens.append(self.vocabulary.control_tokens[match[0]])
            end = match.end()
        return tokens + self._encode_plain(rendered[end:])

    def _encode_plain(self, text: str) -> list[int]:
        return [token for piece in text.split(_GUARD) if piece for token in self.vocabulary.encode(piece)]

    def _template_error(self, error: Exception) -> ModelError:
        return ModelError(
            f"the chat template of {self.vocabulary.model} cannot be used: {error}",
            hint="use a model with another chat template",
        )


class TextStream:
    """Token ids to text as they arrive; never cuts a character in two."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, tokens: Iterable[int]) -> str:
        """The text that `tokens` complete; bytes of an unfinished character wait for the next call."""
        return self._decoder.decode(b"".join(map(self._vocabulary.piece, tokens)))

    def preview(self, tokens: Iterable[int]) -> str:
        """The text that `feed` would give for `tokens`, which are not fed."""
        state = self._decoder.getstate()
        text = self.feed(tokens)
        self._decoder.setstate(state)
        return text

    def finish(self) -> str:
        """What is left at the end: U+FFFD when the last character never got complete."""
        return self._decoder.decode(b"", final=True)


def _environment() -> ImmutableSandboxedEnvironment:
    """Jinja as model templates expect it, without access to anything."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().astimezone().strftime(form)
    return environment


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateRuntimeError(message)


def _plain_template(vocabulary: Vocabulary) -> str:
    return ("{{ bos_token }}" if vocabulary.adds_bos else "") + _PLAIN_TEMPLATE


def _alternatives(texts: Iterable[str]) -> re.Pattern[str]:
    """Matches any of `texts`, the longest first, without single characters, where a guard has no room."""
    ordered = sorted((text for text in texts if len(text) > 1), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, ordered)) or r"(?!)")


def _split_by_guard(match: re.Match[str]) -> str:
    return match[0][:1] + _GUARD + match[0][1:]
