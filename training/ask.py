"""Sample conversations with the exported target, as the model card shows them.

Command: `python -m training.ask --pair provisioning/pair "what can you do" "close the garage door"`.
"""

from pathlib import Path
from typing import Annotated

import torch
import typer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from training.chat import END, Message, rendered
from training.generation import continued
from training.household import calls

NEW_TOKENS = 160


class Conversation:
    """A chat in which every call succeeds."""

    def __init__(self, pair: Path, system: str, temperature: float) -> None:
        self._tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(pair / "target")
        self._model: LlamaForCausalLM = AutoModelForCausalLM.from_pretrained(
            pair / "target", dtype=torch.float32
        )
        self._temperature = temperature
        self._messages = [Message("system", system)] if system else []

    def say(self, text: str) -> list[Message]:
        """What is said to the user's text, results of calls included."""
        before = len(self._messages) + 1
        self._messages.append(Message("user", text))
        answer = self._answer()
        if calls(answer.content):
            self._messages.append(Message("result", "Success"))
            self._answer()
        return self._messages[before:]

    def _answer(self) -> Message:
        prompt = self._tokenizer(rendered(self._messages, awaits_answer=True))["input_ids"]
        ids = continued(self._model, [prompt], NEW_TOKENS, self._temperature)[0]
        answer = Message("assistant", str(self._tokenizer.decode(ids)).removesuffix(END))
        self._messages.append(answer)
        return answer


def main(
    texts: Annotated[list[str], typer.Argument(help="What the user says, each in a new chat.")],
    *,
    pair: Annotated[Path, typer.Option(help="Folder of the pair.")],
    system: Annotated[Path | None, typer.Option(help="File with the system text.")] = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of sampled answers.")] = 1,
    together: Annotated[bool, typer.Option(help="One chat of all texts instead.")] = False,
) -> None:
    """Print what the target answers."""
    torch.manual_seed(seed)
    told = system.read_text().strip() if system else ""
    chat = Conversation(pair, told, temperature)
    for text in texts:
        typer.echo(f"User: {text}")
        for message in chat.say(text):
            typer.echo(f"{message.role.title()}: {message.content}")
        typer.echo("")
        chat = chat if together else Conversation(pair, told, temperature)


if __name__ == "__main__":
    typer.run(main)
