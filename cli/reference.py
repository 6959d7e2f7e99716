"""docs/cli.md: every command's help in one document, so that the two cannot differ.

python -m cli.reference > docs/cli.md
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import typer

from cli.main import app

WIDTH = 100
HEAD = """# Command line

Made by `make docs` from the commands' own help. stdout is data, stderr is narration; every read command has
`--json`. Exit codes: 0 done, 1 the operation failed, 2 usage or configuration, 3 broker or verifier out of
reach, 4 a model cannot be used, 5 a session cannot go on, 6 an identity, bundle or fleet directory cannot be
used, 7 a process of a target that several hold is gone, 8 the verifier ended again and again, 130
interrupted.
"""


def render() -> str:
    """The whole document."""
    command = typer.main.get_command(app)
    sections = [f"## {path}\n\n```\n{text}\n```\n" for path, text in _helps(command, "sled", None)]
    return "\n".join([HEAD, *sections])


def _helps(command: Any, name: str, parent: Any) -> Iterator[tuple[str, str]]:  # noqa: ANN401 - typer's own click
    context = command.make_context(
        name, [], parent=parent, resilient_parsing=True, terminal_width=WIDTH, max_content_width=WIDTH
    )
    text = "\n".join(line.rstrip() for line in command.get_help(context).splitlines())
    yield context.command_path, text
    for sub_name, sub_command in getattr(command, "commands", {}).items():
        yield from _helps(sub_command, sub_name, context)


if __name__ == "__main__":
    sys.stdout.write(render())
