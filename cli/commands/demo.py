"""`sled demo`: the whole of SLED on this machine, gone when it ends."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli import output
from cli.commands.verifier import TargetOption, ThreadsOption
from cli.diagnostics import ExitCode, say
from cli.options import JsonOption, MaxTokensOption, SeedOption, TemperatureOption, TopKOption, TopPOption
from protocol.errors import ConfigError

if TYPE_CHECKING:
    from cli.demo_fleet import DemoFleet

DEFAULT_PROMPT = "lower the kitchen blinds"


def demo(
    *,
    prompt: Annotated[
        list[str] | None, typer.Option(help="Answer this and end; repeatable.", metavar="TEXT")
    ] = None,
    devices: Annotated[int, typer.Option(min=1, max=64, help="Devices that ask at the same time.")] = 1,
    draft: Annotated[
        list[str] | None,
        typer.Option(help="Draft model, bundled name or GGUF; several take turns.", metavar="NAME|FILE"),
    ] = None,
    target: TargetOption = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="float32 (exact), bfloat16 or auto. [default: float32; a GGUF target as stored,"
            " with --check float32]",
            metavar="DTYPE",
        ),
    ] = None,
    threads: ThreadsOption = None,
    temperature: TemperatureOption = None,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    seed: SeedOption = None,
    max_tokens: MaxTokensOption = None,
    check: Annotated[
        bool, typer.Option("--check", help="Run the target alone afterwards and compare every token.")
    ] = False,
    json: JsonOption = False,
    verifier_log: Annotated[Path | None, typer.Option(help="Keep the verifier's log here.")] = None,
) -> None:
    """Start a private broker, a verifier and devices, and chat; all of it over mutual TLS.

    In a terminal and without --prompt this is a chat on the first device. Otherwise every device answers
    its share of the prompts (each at least one), and the figures are printed: with --json one object per
    answer and line. Exit code 1 when --check finds a difference.
    """
    from cli.demo_fleet import DemoFleet, DemoOptions
    from cli.targets import is_gguf
    from device_agent.chat import ChatOptions

    if check and is_gguf(target) and dtype not in (None, "float32"):
        raise ConfigError(
            f"--check compares token by token, which a GGUF target in {dtype} does not allow",
            hint="leave out --dtype, or give --dtype float32",
        )
    is_chat = prompt is None and sys.stdin.isatty() and not json
    prompts = tuple(prompt or (DEFAULT_PROMPT,))
    options = DemoOptions(
        n_devices=devices,
        drafts=tuple(draft or ("draft",)),
        target=target,
        dtype=dtype or ("auto" if is_gguf(target) and not check else "float32"),
        threads=threads,
        verifier_log=verifier_log,
        chat=ChatOptions(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, max_tokens=max_tokens),
    )
    options.check(prompts)
    with tempfile.TemporaryDirectory(prefix="sled-demo-") as folder:
        fleet = DemoFleet(Path(folder), options)
        with fleet:
            if is_chat:
                _chat(fleet)
                return
            answers = fleet.answer(prompts, live=not json and devices == 1)
        if check:
            fleet.compare(answers)
    for answer in answers:
        output.as_json(answer.to_json()) if json else _print(answer.to_json(), is_live=devices == 1)
    if any(answer.is_identical is False for answer in answers):
        raise typer.Exit(ExitCode.FAILED)


def _chat(fleet: DemoFleet) -> None:
    from cli.commands.chat import talk
    from cli.interruption import Interruption

    with Interruption() as interruption:
        fleet.on_loss(interruption.by)
        session = fleet.open_chat()
        say(f"verifier {session.verifier}, seed {session.seed}")
        talk(session, None, as_json=False)


def _print(answer: dict[str, object], *, is_live: bool) -> None:
    if not is_live:
        output.line(f"{answer['device']}: {answer['prompt']}\n  {answer['text']}")
    if "identical_to_target" in answer:
        verdict = "identical to" if answer["identical_to_target"] else "DIFFERENT from"
        say(f"{answer['device']}: {answer['tokens']} tokens, {verdict} the target alone")
