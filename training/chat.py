"""Conversations: their messages, their one textual form, and the corpora's line form."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Role = Literal["system", "user", "assistant", "result"]

DOCUMENT = "<|endoftext|>"
SYSTEM = "<|system|>"
USER = "<|user|>"
ASSISTANT = "<|assistant|>"
RESULT = "<|result|>"
END = "<|end|>"
SPECIAL_TOKENS = (DOCUMENT, END, SYSTEM, USER, ASSISTANT, RESULT)

TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% set role = 'result' if message['role'] == 'tool' else message['role'] %}"
    "{{ '<|' + role + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

_LINE = re.compile(r"^(System|User|Assistant|Call|Result): ?(.*)$")


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


def rendered(messages: Sequence[Message], *, awaits_answer: bool = False) -> str:
    """The text that `TEMPLATE` gives for the same messages."""
    body = "".join(f"<|{m.role}|>{m.content}{END}" for m in messages)
    return DOCUMENT + body + (ASSISTANT if awaits_answer else "")


def parsed(text: str) -> list[Message]:
    """Messages of a document in the corpora's `User: ...` line form.

    A `Call:` line belongs to the assistant message before it. Lines without a
    known beginning continue the message above them.
    """
    messages: list[tuple[Role, list[str]]] = []
    for line in text.strip().splitlines():
        found = _LINE.match(line)
        if found is None:
            if messages:
                messages[-1][1].append(line)
        elif found[1] == "Call" and messages:
            messages[-1][1].append(line)
        else:
            messages.append((_role(found[1]), [found[2]]))
    return [Message(role, "\n".join(lines).strip()) for role, lines in messages]


def _role(label: str) -> Role:
    roles: dict[str, Role] = {
        "System": "system",
        "User": "user",
        "Assistant": "assistant",
        "Call": "assistant",
        "Result": "result",
    }
    return roles[label]
