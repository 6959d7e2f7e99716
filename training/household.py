"""House-assistant samples: reading calls and device lists, mending template slips."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from training.chat import Message

_DEVICE = re.compile(r"^([a-z_]+)\.([a-z0-9_]+) '(.*)' = (.*)$")
_SLOT = re.compile(r"<(\w+)>")
_COLOR = re.compile(r";(\w+) \(\d+, ?\d+, ?\d+\)")
_UNIT = r"(?:seconds?|minutes?|hours?)"
_DURATION = re.compile(
    rf"((?:half an hour|an hour and a half|[\w-]+ {_UNIT})(?:(?: and |, | )[\w-]+ {_UNIT})*)"
)


@dataclass(frozen=True)
class Device:
    """One line of a device list."""

    kind: str
    entity: str
    name: str
    state: str


@dataclass(frozen=True)
class Call:
    """One action that an answer asks for."""

    action: str
    arguments: Mapping[str, Any]


def devices(system_text: str) -> list[Device]:
    """Devices that a system text lists, in its order."""
    found = (_DEVICE.match(line) for line in system_text.splitlines())
    return [Device(m[1], f"{m[1]}.{m[2]}", m[3], m[4]) for m in found if m]


def calls(answer: str) -> list[Call]:
    """Well-formed calls of an answer, in order; a malformed call is left out."""
    return list(_calls(answer))


def _calls(answer: str) -> Iterator[Call]:
    for line in answer.splitlines():
        if not line.startswith("Call: "):
            continue
        try:
            document = json.loads(line.removeprefix("Call: "))
            yield Call(str(document["name"]), dict(document["arguments"]))
        except (ValueError, KeyError, TypeError):
            continue


def colors(texts: Sequence[str]) -> frozenset[str]:
    """Names of colours that the device lists of `texts` mention."""
    return frozenset(name for text in texts for name in _COLOR.findall(text))


def mended(messages: Sequence[Message], known_colors: frozenset[str]) -> list[Message] | None:
    """The sample with slots such as `<color>` filled in; None when one cannot be."""
    request = next((m.content for m in messages if m.role == "user"), "")
    whole: list[Message] = []
    for message in messages:
        content = message.content
        for slot in _SLOT.findall(content):
            value = _value(slot, request, calls(content), known_colors)
            if value is None:
                return None
            content = content.replace(f"<{slot}>", value)
        whole.append(Message(message.role, content))
    return whole


def _value(slot: str, request: str, made: Sequence[Call], known_colors: frozenset[str]) -> str | None:
    if slot == "color":
        named = [word for word in re.findall(r"\w+", request.lower()) if word in known_colors]
        return named[-1] if named else None
    if slot == "duration":
        found = _DURATION.search(request)
        return found[1] if found else None
    argument = {"todo": "item", "temp_f": "temperature", "temp_c": "temperature"}.get(slot, slot)
    value = next((c.arguments[argument] for c in made if argument in c.arguments), None)
    return None if value is None else str(value).lower()
