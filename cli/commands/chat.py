"""`sled chat`: a conversation on this device."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli import output
from cli.diagnostics import ExitCode, keep_log_off_conversation, say
from cli.options import (
    HomeOption,
    JsonOption,
    MaxTokensOption,
    SeedOption,
    TemperatureOption,
    TimeoutOption,
    TopKOption,
    TopPOption,
)

if TYPE_CHECKING:
    from device_agent.chat import ChatSession

TIMEOUT_S = 20.0


def chat(
    *,
    home: HomeOption,
    bundle: Annotated[
        Path | None,
        typer.Option(help="Install this bundle first, unless its device is there already.", metavar="FILE"),
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Answer this and leave.", metavar="TEXT")] = None,
    temperature: TemperatureOption = None,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    seed: SeedOption = None,
    max_tokens: MaxTokensOption = None,
    system_prompt: Annotated[str | None, typer.Option(help="Put before the conversation.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the last conversation.")] = False,
    json: JsonOption = False,
    timeout: TimeoutOption = TIMEOUT_S,
) -> None:
    """Talk to the target.

    Without a terminal, every line of stdin is one message; exit code 5 when one of them had no answer. With
    --json every answer is one object and line.
    """
    from cli.agents import agent_of
    from cli.installed import ensure_installed
    from device_agent.chat import ChatOptions

    if bundle is not None:
        say(ensure_installed(bundle, home))
    options = ChatOptions(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        max_tokens=max_tokens,
        system_prompt=system_prompt,
    )
    with agent_of(home) as agent:
        agent.wait_ready(timeout)
        session = agent.chat(options, resume=resume)
        say(f"verifier {session.verifier}, seed {session.seed}")
        talk(session, prompt, as_json=json, timeout_s=timeout)


def talk(session: ChatSession, prompt: str | None, *, as_json: bool, timeout_s: float = TIMEOUT_S) -> None:
    """Answer one prompt, which begins in time, or talk until the user leaves."""
    from cli.chat.answer import collect
    from cli.chat.json_lines import JsonLines
    from cli.chat.loop import converse
    from cli.chat.patience import begun_within
    from cli.chat.printer import Printer

    printer = Printer()
    if session.tokens and not as_json:
        output.text(session.text if session.is_interrupted else session.text.rstrip("\n") + "\n\n")
    if session.is_interrupted:
        finished = collect(session.continue_answer(), None if as_json else printer.show)
        if as_json:
            output.as_json(finished.to_json())
    if prompt is not None:
        show = None if as_json else printer.show
        answer = collect(begun_within(session.send(prompt), timeout_s, session.stop), show)
        if as_json:
            output.as_json(answer.to_json())
        return
    if sys.stdin.isatty():
        keep_log_off_conversation()
        printer.note("type a message; /help lists commands, Ctrl-D leaves")
    n_failed = converse(session, _read_line, JsonLines() if as_json else printer)
    if n_failed and not sys.stdin.isatty():
        raise typer.Exit(ExitCode.SESSION)


def _read_line() -> str:
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line
    # Gives line editing and history to input().
    import readline  # noqa: F401

    return input("> ")
