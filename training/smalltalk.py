"""Generated conversations that a first chat brings up and the corpora lack."""

import re
from collections.abc import Callable, Iterator, Sequence
from random import Random

from training.chat import Message
from training.household import Device, devices
from training.tales import TALES, Tale

Thread = list[Message]

_ABILITIES = {
    "light": "switch and dim the lights",
    "switch": "flip the switches",
    "cover": "open and close the blinds and doors",
    "fan": "run the fans",
    "lock": "look after the locks",
    "climate": "set the temperature and the humidity",
    "media_player": "play and pause the music",
    "vacuum": "send the vacuum cleaner round",
    "todo": "keep your lists",
    "timer": "run the timers",
}
_EXAMPLES = {
    "light": "turn on the {}",
    "switch": "turn off the {}",
    "cover": "lower the {}",
    "fan": "turn on the {}",
    "lock": "is the {} locked",
    "media_player": "is the {} playing",
    "vacuum": "start the {}",
}
_HELLO = (
    "hello",
    "hi",
    "hey",
    "hey there",
    "hello there",
    "good morning",
    "good evening",
    "hi, how are you",
)
_WHO = (
    "who are you",
    "what are you",
    "what is your name",
    "who am i talking to",
)
_ABLE = (
    "what can you do",
    "what can you do for me",
    "help",
    "how can you help me",
    "what can i ask you",
    "what do you do",
    "what can i say",
)
_LIST = (
    "what devices are there",
    "which devices do you see",
    "list my devices",
    "what is in the house",
)
_THANKS = (
    "thanks",
    "thank you",
    "thank you very much",
    "great, thanks",
    "cheers",
    "well done",
)
_BYE = (
    "bye",
    "goodbye",
    "see you later",
    "good night",
    "that is all",
)
_CLOCK = (
    "what time is it",
    "what is the time",
    "tell me the time",
    "do you know the time",
)
_DAY = (
    "what day is it",
    "what is the date",
    "what is the date today",
)
_OUTSIDE = (
    "what is the weather like",
    "will it rain tomorrow",
    "what is in the news",
    "order a pizza",
    "who won the match",
    "call my mother",
    "book a flight to rome",
    "what is the price of bread",
)
_STORY = (
    "tell me a story",
    "tell me a short story",
    "tell me a bedtime story",
    "can you tell me a story",
    "please tell me a short story",
    "tell a story for the children",
    "i would like to hear a story",
)
_TIME = re.compile(r"The current time and date is (.*?) on (.*)$", re.MULTILINE)


def household_thread(system: str, random: Random) -> Thread:
    """A greeting, question or goodbye about the house of a system text, with its answer."""
    seen = devices(system)
    kinds: list[tuple[Sequence[str], Callable[[str, Sequence[Device], Random], str]]] = [
        (_HELLO, _greeting),
        (_WHO, _introduction),
        (_ABLE, _abilities),
        (_ABLE, _abilities),
        (_LIST, _inventory),
        (_THANKS, _welcome),
        (_BYE, _farewell),
        (_CLOCK, _clock),
        (_DAY, _day),
        (_OUTSIDE, _refusal),
    ]
    requests, answer = random.choice(kinds)
    request = _worn(random.choice(list(requests)), random)
    said = _voiced(system, answer(system, seen, random))
    return [Message("system", system), Message("user", request), Message("assistant", said)]


def plain_thread(random: Random) -> Thread:
    """The same without a house: no system text, no devices."""
    kinds = [
        (_HELLO, "Hello! What can I do for you?"),
        (_WHO, "I am a small house assistant. I switch devices and answer short questions."),
        (_ABLE, "I can switch the devices of a house, answer short questions and tell stories."),
        (_LIST, "I see no devices here. Connect me to a house and I will look after it."),
        (_THANKS, "You are welcome."),
        (_BYE, "Goodbye, and have a good day."),
        (_OUTSIDE, "I am sorry, I cannot do that from here."),
    ]
    requests, answer = random.choice(kinds)
    return [
        Message("user", _worn(random.choice(requests), random)),
        Message("assistant", answer),
    ]


def story_thread(title: str | None, story: str, system: str | None, random: Random) -> Thread:
    """A story asked for, or begun by the user and told from its beginning."""
    told = opening(story, random.randint(50, 140))
    asked = random.choice(_STORY)
    if title and random.random() < 0.4:
        asked = f"{asked} about {title.lower()}"
    elif random.random() < 0.5:
        asked = " ".join(told.split()[: random.randint(3, 9)]).rstrip(",;:")
    head = [Message("system", system)] if system else []
    return [*head, Message("user", _worn(asked, random)), Message("assistant", told)]


def tale_thread(tale: Tale, system: str | None, random: Random) -> Thread:
    """One of the tales, asked for or begun by the user."""
    asked = random.choice(_STORY)
    dice = random.random()
    if dice < 0.3:
        asked = f"{asked} about {tale.about}"
    elif dice < 0.6:
        asked = " ".join(tale.text.split()[: random.randint(3, 8)])
    head = [Message("system", system)] if system else []
    return [*head, Message("user", _worn(asked, random)), Message("assistant", tale.text)]


def opening(story: str, words: int) -> str:
    """Whole sentences from the beginning of a story, about `words` words long."""
    flat = " ".join(story.split())
    told: list[str] = []
    count = 0
    for sentence in re.split(r"(?<=[.!?])[\"']? (?=[A-Z\"'])", flat):
        count += len(sentence.split())
        if told and count > words:
            break
        told.append(sentence)
    return " ".join(told)


def _worn(request: str, random: Random) -> str:
    """The request in one of the shapes in which people type it."""
    shape = random.randrange(4)
    if shape == 0:
        return request[:1].upper() + request[1:]
    if shape == 1 and request[-1].isalnum():
        asks = request.split(maxsplit=1)[0] in {"what", "who", "which", "how", "will", "can", "do"}
        return request + ("?" if asks else ".")
    return request


def _name(system: str) -> str:
    found = re.search(r"You are '(\w+)'", system)
    return found[1] if found else "Al"


def _voiced(system: str, answer: str) -> str:
    name = _name(system)
    if name == "Blackbeard":
        return "Arr, matey! " + answer.replace("You are", "Ye be").replace("you", "ye")
    if name == "Robo":
        return "Beep-Boop. " + answer
    return answer


def _greeting(_system: str, seen: Sequence[Device], random: Random) -> str:
    if seen and random.random() < 0.5:
        return f"Hello! I am looking after {len(seen)} devices here. What can I do for you?"
    return "Hello! What can I do for you in the house?"


def _introduction(system: str, _seen: Sequence[Device], _random: Random) -> str:
    return f"I am {_name(system)}, the assistant that controls the devices in this house."


def _abilities(_system: str, seen: Sequence[Device], random: Random) -> str:
    kinds = list(dict.fromkeys(d.kind for d in seen if d.kind in _ABILITIES))
    if not kinds:
        return "I can switch the devices of a house and answer questions about them."
    able = _joined([_ABILITIES[kind] for kind in kinds[:4]])
    tried = [d for d in seen if d.kind in _EXAMPLES]
    if not tried:
        return f"I can {able}."
    device = random.choice(tried)
    example = _EXAMPLES[device.kind].format(device.name.lower())
    return f'I can {able}. For example, say "{example}".'


def _inventory(_system: str, seen: Sequence[Device], _random: Random) -> str:
    if not seen:
        return "I see no devices in this house."
    return f"I see {_joined([d.name for d in seen])}."


def _welcome(_system: str, _seen: Sequence[Device], random: Random) -> str:
    return random.choice(["You are welcome.", "You are welcome. Is there anything else?"])


def _farewell(_system: str, _seen: Sequence[Device], _random: Random) -> str:
    return "Goodbye! I will look after the house."


def _clock(system: str, _seen: Sequence[Device], _random: Random) -> str:
    found = _TIME.search(system)
    return f"It is {found[1]}." if found else "I do not know the time."


def _day(system: str, _seen: Sequence[Device], _random: Random) -> str:
    found = _TIME.search(system)
    return f"It is {found[2]}." if found else "I do not know the date."


def _refusal(_system: str, _seen: Sequence[Device], _random: Random) -> str:
    return "I am sorry, I cannot do that from here. I only know the devices in this house."


def _joined(parts: Sequence[str]) -> str:
    if len(parts) < 2:
        return "".join(parts)
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def threads(
    systems: Sequence[str],
    stories: Sequence[tuple[str | None, str]],
    answers: Sequence[Thread],
    houses: Sequence[Thread],
    random: Random,
) -> Iterator[Thread]:
    """Small talk for every system text, with stories, short answers and house turns mixed in.

    `answers` are threads without a house that are also told inside one; `houses`
    are house requests, each of which may follow a first turn of small talk.
    """
    for index, system in enumerate(systems):
        yield household_thread(system, random)
        yield tale_thread(random.choice(TALES), system, random)
        if index % 6 == 0:
            yield plain_thread(random)
            yield tale_thread(random.choice(TALES), None, random)
    for title, story in stories:
        yield story_thread(title, story, random.choice(systems), random)
    for thread in answers:
        yield [Message("system", random.choice(systems)), *thread]
    for house in houses:
        first = household_thread(house[0].content, random)
        last = household_thread(house[0].content, random)
        yield [*first, *house[1:]] if random.random() < 0.7 else [*house, *last[1:]]
