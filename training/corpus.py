"""Corpora as documents, split into training and held-out text.

Command: `python -m training.corpus --data FOLDER --work FOLDER` encodes both
parts of every domain with the tokenizer in the work folder.
"""

import hashlib
import json
import lzma
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Annotated, Any, Literal

import numpy as np
import typer
from numpy.typing import NDArray
from tokenizers import Tokenizer

from training import drills, smalltalk
from training.chat import DOCUMENT, Message, parsed, rendered
from training.household import calls, colors, devices, mended

Part = Literal["train", "held"]
Stored = Literal["train", "held", "own"]
Ids = NDArray[np.uint16]

HELD_SHARE = 0.02
HELD_MOST = 400
SECTION_CHARACTERS = 6_000
DRILLS_MOST = 5_000
PLAIN_PERSONA = "You are 'Al'"


@dataclass(frozen=True)
class Domain:
    """One register of text and its share of the training tokens."""

    name: str
    file: str | None
    share: float
    kind: Literal["chat", "text"] = "text"


DOMAINS = (
    Domain("house", "home_assistant_requests_train", 0.60, "chat"),
    Domain("drills", None, 0.16, "chat"),
    Domain("smalltalk", None, 0.11, "chat"),
    Domain("camrest", "camrest_dialogues", 0.015, "chat"),
    Domain("woz", "woz_dialogues", 0.02, "chat"),
    Domain("multiwoz", "multiwoz_valtest_dialogues", 0.045, "chat"),
    Domain("taskmaster", "taskmaster4_dialogues", 0.03, "chat"),
    Domain("instructions", "rasbt_instructions_1100", 0.01, "chat"),
    Domain("tldr", "tldr_en_pages", 0.07),
    Domain("powershell", "powershell_docs", 0.03),
    Domain("python", "thealgorithms_python", 0.04),
    Domain("maths", "gsm8k_train", 0.06),
    Domain("storybooks", "storybooks_ccby_en", 0.05),
    Domain("fairytales", "fairytaleqa_stories", 0.06),
    Domain("novels", "english_novels", 0.03),
)


def documents(data: Path, part: Part | None) -> dict[str, list[str]]:
    """Rendered documents by domain: one part, or with None every document there is.

    The split depends on the texts alone. Generated small talk draws only on
    documents of its own part. Domains whose file is missing are left out.
    """
    chosen: dict[str, list[str]] = {}
    for domain in DOMAINS:
        path = data / f"{domain.file}.jsonl.xz"
        if domain.file and path.exists():
            chosen[domain.name] = _part(list(_texts(path)), part)
    threads = {d.name: _threads(d.name, chosen[d.name]) for d in DOMAINS if _is_chat(d, chosen)}
    rendering = {name: [rendered(t) for t in found] for name, found in threads.items()}
    if "house" in threads:
        random = Random(f"smalltalk {part}")
        spoken = list(_smalltalk(threads, chosen, random))
        rendering["smalltalk"] = [rendered(thread) for thread in spoken]
        plain = [t[0].content for t in threads["house"] if t[0].content.startswith(PLAIN_PERSONA)]
        drilled = drills.threads(plain[:DRILLS_MOST], random)
        rendering["drills"] = [rendered(thread) for thread in drilled]
        if part == "train":
            rendering["house"] += [rendered(t) for t in joined(threads["house"], random)]
    texts = {name: [DOCUMENT + text for text in chosen[name]] for name in chosen}
    return texts | rendering


def _is_chat(domain: Domain, chosen: dict[str, list[str]]) -> bool:
    return domain.kind == "chat" and domain.name in chosen


def _texts(path: Path) -> Iterator[str]:
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            text = json.loads(line)["text"].replace("\ufeff", "").strip()
            yield from _sections(text) if len(text) > 40 * SECTION_CHARACTERS else [text]


def _sections(text: str) -> Iterator[str]:
    """A book as pieces of whole paragraphs, so that a part of it can be held out."""
    piece: list[str] = []
    for paragraph in text.split("\n\n"):
        piece.append(paragraph)
        if sum(map(len, piece)) >= SECTION_CHARACTERS:
            yield "\n\n".join(piece)
            piece = []
    if piece:
        yield "\n\n".join(piece)


def _part(texts: list[str], part: Part | None) -> list[str]:
    unique = list(dict.fromkeys(text for text in texts if text))
    if part is None:
        return unique
    ordered = sorted(unique, key=lambda text: hashlib.sha256(text.encode()).digest())
    held = min(HELD_MOST, max(1, round(HELD_SHARE * len(ordered))))
    return ordered[:held] if part == "held" else ordered[held:]


def _threads(name: str, texts: Sequence[str]) -> list[list[Message]]:
    if name != "house":
        return [parsed(text) for text in texts]
    known = colors(texts)
    repaired = (mended(parsed(text), known) for text in texts)
    return [thread for thread in repaired if thread is not None and not _fails(thread)]


def _fails(thread: Sequence[Message]) -> bool:
    """Whether a call fails: the set does so with invented names, which nobody should learn."""
    return any(message.role == "result" and message.content != "Success" for message in thread)


def _smalltalk(
    threads: dict[str, list[list[Message]]], texts: dict[str, list[str]], random: Random
) -> Iterator[list[Message]]:
    houses = threads["house"]
    systems = [thread[0].content for thread in houses]
    stories = [_titled(text) for name in ("storybooks", "fairytales") for text in texts.get(name, [])]
    answers = [thread for thread in threads.get("instructions", []) if len(thread) == 2]
    few = max(1, len(systems) // 10)
    yield from smalltalk.threads(
        random.sample(systems, few), stories, answers, random.sample(houses, few), random
    )


def _titled(text: str) -> tuple[str | None, str]:
    found = re.match(r"# (.*)\n", text)
    return (found[1], text[found.end() :]) if found else (None, text)


def joined(houses: Sequence[list[Message]], random: Random) -> Iterator[list[Message]]:
    """Pairs of house requests as one conversation over both device lists.

    Only pairs of one persona in which neither called kind of device occurs in
    the other's list, so that each request still means the same device.
    """
    shuffled = [thread for _ in range(4) for thread in random.sample(list(houses), len(houses))]
    for first, second in zip(shuffled[::2], shuffled[1::2], strict=False):
        system = _united(first[0].content, second[0].content, random)
        if system and not (_called(first) & _kinds(second) or _called(second) & _kinds(first)):
            yield [Message("system", system), *first[1:], *second[1:]]


def _united(first: str, second: str, random: Random) -> str | None:
    head, _, listed = first.partition("\nDevices:\n")
    other_head, _, other = second.partition("\nDevices:\n")
    if not listed or not other or head[:24] != other_head[:24]:
        return None
    lines = list(dict.fromkeys(listed.splitlines() + other.splitlines()))
    random.shuffle(lines)
    return "\n".join([head, "Devices:", *lines])


def _kinds(thread: Sequence[Message]) -> set[str]:
    return {device.kind for device in devices(thread[0].content)}


def _called(thread: Sequence[Message]) -> set[str]:
    """Kinds of the devices called, or all kinds when the thread calls none by name."""
    wanted = {
        str(call.arguments.get("name", "")).lower()
        for message in thread
        if message.role == "assistant"
        for call in calls(message.content)
    }
    found = {d.kind for d in devices(thread[0].content) if d.name.lower() in wanted or d.entity in wanted}
    return found or _kinds(thread)


@dataclass(frozen=True)
class Encoded:
    """Documents of one domain and part, end to end, with the offset of each."""

    ids: Ids
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Ids:
        return self.ids[self.offsets[index] : self.offsets[index + 1]]


def encoded(texts: Sequence[str], tokenizer: Tokenizer) -> Encoded:
    """Token ids of documents."""
    rows = [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]
    lengths = np.array([0] + [len(row) for row in rows], dtype=np.int64)
    ids = np.concatenate([np.array(row, dtype=np.uint16) for row in rows])
    return Encoded(ids, np.cumsum(lengths))


def loaded(work: Path, part: Stored) -> dict[str, Encoded]:
    """What `main` stored for a part, by domain."""
    with np.load(work / f"{part}.npz") as stored:
        names = [key.removesuffix(".ids") for key in stored.files if key.endswith(".ids")]
        return {n: Encoded(stored[f"{n}.ids"], stored[f"{n}.offsets"]) for n in names}


def store(data: Path, work: Path) -> None:
    """Encode both parts of all domains in `data` into the work folder."""
    tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))
    parts: tuple[Part, ...] = ("train", "held")
    for part in parts:
        arrays: dict[str, Any] = {}
        for name, texts in documents(data, part).items():
            found = encoded(texts, tokenizer)
            arrays |= {f"{name}.ids": found.ids, f"{name}.offsets": found.offsets}
            typer.echo(f"{part} {name}: {len(found)} documents, {len(found.ids)} tokens")
        np.savez(work / f"{part}.npz", **arrays)


def main(
    *,
    data: Annotated[Path, typer.Option(help="Folder with the *.jsonl.xz corpora.")],
    work: Annotated[Path, typer.Option(help="Work folder, with the tokenizer in it.")],
) -> None:
    """Split and encode the corpora."""
    store(data, work)


if __name__ == "__main__":
    typer.run(main)
