"""Generated house conversations of several plain requests over one device list.

The house set asks one thing of each device list. A drill asks several, in the same
words and with the same actions, so that finding a device and saying its name is learnt
from far fewer tokens, and so that a second request is as good as a first.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

from training.chat import Message
from training.household import Device, devices

MOST_TURNS = 6
ABSENT_SHARE = 0.04
QUESTION_SHARE = 0.2


@dataclass(frozen=True)
class Drill:
    """A way to ask something of a device: `{n}` is its name, `{v}` a value."""

    action: str
    requests: tuple[str, ...]
    begun: str
    done: str
    argument: str = ""
    values: tuple[str | int, ...] = ("",)


def _switching(on: str, off: str) -> tuple[Drill, ...]:
    """Drills for what is turned on and off, each with its verbs, divided by commas."""
    drills = []
    for action, state, verbs in (("HassTurnOn", "on", on), ("HassTurnOff", "off", off)):
        requests = tuple(f"{verb} the {{n}}" for verb in verbs.split(","))
        short = (
            f"turn the {{n}} {state}",
            f"{{n}} {state}",
            f"can you turn {state} the {{n}}?",
            f"make sure the {{n}} is {state}",
            f"set the {{n}} to {state}",
        )
        drills.append(
            Drill(action, requests + short, f"turning {state} {{n}} now.", f"the {{n}} is now {state}.")
        )
    toggled = ("toggle the {n}", "switch the state of the {n}", "change the status of the {n}")
    return (*drills, Drill("HassToggle", toggled, "toggling {n} now.", "the {n} has been toggled."))


def _set(action: str, requests: str, begun: str, done: str) -> Drill:
    """A drill with its requests divided by commas."""
    return Drill(action, tuple(requests.split(",")), begun, done)


_COLORS = ("red", "green", "blue", "purple", "orange", "indigo", "gold", "white", "pink", "plum")
_ITEMS = (
    "buy milk",
    "call the dentist",
    "water the plants",
    "pay the rent",
    "clean the windows",
    "book a table",
)

DRILLS: dict[str, tuple[Drill, ...]] = {
    "light": (
        *_switching(
            "turn on,switch on,light up,activate,power on,engage",
            "turn off,switch off,shut off,deactivate,power off,disable",
        ),
        Drill(
            "HassTurnOn",
            ("turn the {n} {v}", "set the {n} to {v}", "make the {n} {v}"),
            "setting {n} to {v} now.",
            "the {n} is now {v}.",
            values=_COLORS,
        ),
    ),
    "switch": _switching("turn on,switch on,activate", "turn off,switch off,shut off,deactivate,disable"),
    "fan": (
        *_switching("turn on,switch on,start,activate", "turn off,switch off,stop,deactivate"),
        _set(
            "HassTurnOn",
            "increase the speed of the {n},speed up the {n},increase the {n} speed,make the {n} faster",
            "increasing speed of {n} now.",
            "speed of {n} has been increased.",
        ),
        _set(
            "HassTurnOff",
            "decrease the speed of the {n},slow down the {n},decrease the {n} speed,make the {n} slower",
            "reducing speed of {n} now.",
            "speed of {n} has been reduced.",
        ),
    ),
    "cover": (
        Drill(
            "HassTurnOn",
            ("open the {n}", "raise the {n}", "lift the {n}"),
            "opening {n} now.",
            "the {n} is now open.",
        ),
        Drill(
            "HassTurnOff",
            ("close the {n}", "lower the {n}", "shut the {n}"),
            "closing {n} now.",
            "the {n} is now closed.",
        ),
        Drill("HassToggle", ("stop the {n}", "halt the {n}"), "stopping {n} now.", "the {n} has stopped."),
    ),
    "lock": (
        _set(
            "HassTurnOn",
            "lock the {n},secure the {n},engage the {n},make sure the {n} is locked",
            "locking {n} now.",
            "the {n} is now locked.",
        ),
        _set(
            "HassTurnOff",
            "unlock the {n},open the {n},release the {n}",
            "unlocking {n} now.",
            "the {n} is now unlocked.",
        ),
    ),
    "media_player": (
        Drill("HassTurnOn", ("turn on the {n}",), "turning on {n} now.", "the {n} is now on."),
        Drill(
            "HassTurnOff", ("turn off the {n}", "stop the {n}"), "stopping {n} now.", "the {n} is now off."
        ),
        Drill("HassMediaPause", ("pause the {n}",), "pausing {n} now.", "the {n} is now paused."),
        Drill(
            "HassMediaUnpause",
            ("play music on the {n}", "play the {n}"),
            "starting playback on {n} now.",
            "the {n} is now playing.",
        ),
        Drill(
            "HassMediaNext",
            ("next track on the {n}",),
            "skipping a track on {n} now.",
            "the next track is now playing.",
        ),
        Drill(
            "HassSetVolume",
            ("turn up the {n}", "louder on the {n}", "increase the volume on the {n}"),
            "turning up the volume of {n} now.",
            "the volume of {n} has been increased.",
        ),
        Drill(
            "HassSetVolume",
            ("turn down the {n}", "decrease the volume on the {n}", "mute the {n}"),
            "turning down the volume of {n} now.",
            "the volume of {n} has been reduced.",
        ),
    ),
    "vacuum": (
        Drill(
            "HassVacuumStart",
            ("start the {n}", "start cleaning with the {n}"),
            "starting {n} now.",
            "the {n} is now cleaning.",
        ),
        Drill("HassTurnOff", ("pause the {n}",), "pausing {n} now.", "the {n} is now paused."),
        Drill(
            "HassVacuumReturnToBase",
            ("send the {n} back to its base",),
            "sending {n} back to its base now.",
            "the {n} has returned to its base.",
        ),
    ),
    "timer": (
        Drill("HassCancelTimer", ("cancel the {n}",), "canceling {n} now.", "the {n} has been canceled."),
    ),
    "climate": (
        Drill(
            "HassClimateSetTemperature",
            ("set the temperature to {v} degrees", "set the {n} to {v} degrees", "make it {v} degrees"),
            "setting temperature to {v} degrees.",
            "the temperature is now set to {v} degrees.",
            "temperature",
            tuple(range(16, 28)),
        ),
    ),
    "todo": (
        Drill(
            "HassListAddItem",
            ("add {v} to the {n}", "put {v} on the {n}"),
            "adding {v} to {n}.",
            "{v} has been added to {n}.",
            "item",
            _ITEMS,
        ),
    ),
}

_JOINABLE = ("light", "switch", "fan", "cover", "lock")
"""Kinds of devices that may be asked for in one sentence with others."""
_QUESTIONS = ("is the {n} {s}?", "what is the state of the {n}?", "is the {n} {s} or not?")
_ABSENT = "i\u2019m sorry, i can\u2019t locate that device in your home."


def threads(systems: Sequence[str], random: Random) -> Iterator[list[Message]]:
    """A drill for each system text that lists devices."""
    for system in systems:
        listed = [device for device in devices(system) if device.kind in DRILLS]
        strangers = devices(random.choice(systems))
        chosen = _varied(listed, random.randint(2, MOST_TURNS), random)
        turns = [_turn(device, listed, strangers, random) for device in chosen]
        if len(plain := [device for device in chosen if device.kind in _JOINABLE]) > 1:
            turns.append(_several(plain[: random.choice((2, 2, 3))], random))
            random.shuffle(turns)
        if turns:
            yield [Message("system", system), *(message for turn in turns for message in turn)]


def _varied(listed: Sequence[Device], most: int, random: Random) -> list[Device]:
    """Devices in random order, one of each kind first, so that rare kinds are asked for as often."""
    shuffled = random.sample(listed, len(listed))
    first = list({device.kind: device for device in shuffled}.values())
    others = [device for device in shuffled if device not in first]
    return (random.sample(first, len(first)) + others)[:most]


def _turn(
    device: Device, listed: Sequence[Device], strangers: Sequence[Device], random: Random
) -> list[Message]:
    dice = random.random()
    if dice < ABSENT_SHARE:
        names = {known.name for known in listed}
        absent = [d for d in strangers if d.kind in {"light", "fan", "switch"} and d.name not in names]
        if absent:
            request, drill = _asked(random.choice(absent), random)
            request = request.replace("{v}", str(drill.values[0]))
            return [Message("user", request), Message("assistant", _ABSENT)]
    if dice < ABSENT_SHARE + QUESTION_SHARE and device.kind in {"light", "switch", "fan", "cover", "lock"}:
        return _question(device, random)
    request, drill = _asked(device, random)
    value = random.choice(drill.values) if "{v}" in request else ""
    return _acted(device, drill, request, value)


def _asked(device: Device, random: Random) -> tuple[str, Drill]:
    drill = random.choice(DRILLS[device.kind])
    return random.choice(drill.requests).replace("{n}", device.name.lower()), drill


def _question(device: Device, random: Random) -> list[Message]:
    state = device.state.split(";")[0]
    guess = random.choice(
        {"cover": ("open", "closed"), "lock": ("locked", "unlocked")}.get(device.kind, ("on", "off"))
    )
    name = device.name.lower()
    request = random.choice(_QUESTIONS).format(n=name, s=guess)
    return [Message("user", request), Message("assistant", f"the {name} is currently {state}")]


def _several(chosen: Sequence[Device], random: Random) -> list[Message]:
    """Plain requests of several devices in one sentence."""
    asked = [(d, random.choice([each for each in DRILLS[d.kind] if each.values == ("",)])) for d in chosen]
    requests = [random.choice(drill.requests[:3]).replace("{n}", d.name.lower()) for d, drill in asked]
    between = random.choice((" ", ", ", " and "))
    begun = " ".join(drill.begun.format(n=device.name.lower()) for device, drill in asked)
    made = "\n".join(_call(drill.action, {"name": device.name}) for device, drill in asked)
    done = " and ".join(drill.done.format(n=d.name.lower()).removesuffix(".") for d, drill in asked)
    return [
        Message("user", between.join(requests[:-1]) + " and " + requests[-1]),
        Message("assistant", f"{begun}\n{made}"),
        Message("result", "Success"),
        Message("assistant", f"{done}."),
    ]


def _call(action: str, arguments: dict[str, str | int]) -> str:
    return "Call: " + json.dumps({"name": action, "arguments": arguments}, ensure_ascii=False)


def _acted(device: Device, drill: Drill, request: str, value: str | int) -> list[Message]:
    arguments: dict[str, str | int] = {"name": device.name}
    if drill.argument:
        arguments[drill.argument] = value.capitalize() if isinstance(value, str) else value
    named = {"n": device.name.lower(), "v": value}
    return [
        Message("user", request.replace("{v}", str(value))),
        Message("assistant", f"{drill.begun.format(**named)}\n{_call(drill.action, arguments)}"),
        Message("result", "Success"),
        Message("assistant", drill.done.format(**named)),
    ]
