"""House check: does the target's greedy answer call the right action on the right device?

Command: `python -m training.house --data FOLDER --pair provisioning/pair`. It asks the
requests held out of training; with `--everything`, every request in the folder.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from transformers import AutoModelForCausalLM, AutoTokenizer

from training.chat import ASSISTANT, END
from training.corpus import documents
from training.generation import continued
from training.household import Call, calls, devices

NEW_TOKENS = 160
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Request:
    """A prompt up to the answer, its system text and the answer expected."""

    prompt: str
    system: str
    expected: str

    def outcome(self, answer: str) -> frozenset[tuple[str, str]]:
        """Actions and devices of an answer, entity ids and names being the same device."""
        return frozenset((call.action, self._device(call)) for call in calls(answer))

    def is_answerable(self) -> bool:
        """Whether every device that the expected answer calls is on the list."""
        return all(device != UNKNOWN for _, device in self.outcome(self.expected))

    def is_right(self, answer: str) -> bool:
        """Whether an answer calls what was expected, or like it calls nothing."""
        return self.outcome(answer) == self.outcome(self.expected)

    def _device(self, call: Call) -> str:
        wanted = str(call.arguments.get("name", "")).lower()
        listed = devices(self.system)
        return next((d.entity for d in listed if wanted in {d.entity, d.name.lower()}), UNKNOWN)


def requests(texts: Sequence[str]) -> list[Request]:
    """The first request of each rendered house conversation."""
    found: list[Request] = []
    for text in texts:
        prompt, _, rest = text.partition(ASSISTANT)
        expected = rest.partition(END)[0]
        found.append(Request(prompt + ASSISTANT, prompt.partition(END)[0], expected))
    return found


def main(
    *,
    data: Annotated[Path, typer.Option(help="Folder with the corpora.")],
    pair: Annotated[Path, typer.Option(help="Folder of the pair.")],
    everything: Annotated[bool, typer.Option(help="Ask every request in the folder.")] = False,
    show: Annotated[int, typer.Option(help="Print this many wrong answers.")] = 0,
) -> None:
    """Count right answers among requests that ask for an action, and among the others."""
    found = requests(documents(data, None if everything else "held")["house"])
    asked = [request for request in found if request.is_answerable()]
    typer.echo(f"left out, as they call a device that is not listed: {len(found) - len(asked)}")
    tokenizer = AutoTokenizer.from_pretrained(pair / "target")
    model = AutoModelForCausalLM.from_pretrained(pair / "target", dtype=torch.float32)
    prompts = [tokenizer(request.prompt)["input_ids"] for request in asked]
    answers = [tokenizer.decode(ids).removesuffix(END) for ids in continued(model, prompts, NEW_TOKENS)]
    judged = [(r, a, r.is_right(a)) for r, a in zip(asked, answers, strict=True)]
    for label, acting in (("action asked for", True), ("no action", False)):
        right = [ok for r, _, ok in judged if bool(calls(r.expected)) == acting]
        typer.echo(f"{label}: {sum(right)} of {len(right)} right")
    for request, answer, _ in [entry for entry in judged if not entry[2]][:show]:
        typer.echo(f"--\n{request.prompt}\n>> {answer}\n== {request.expected}")


if __name__ == "__main__":
    typer.run(main)
