"""`sled models`: which models go together, and whether the bundled ones are whole."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cli import output
from cli.diagnostics import say
from cli.options import JsonOption

app = typer.Typer(help="Known pairs of target and draft, and the bundled one.", no_args_is_help=True)

MARKS = {"ok": "ok", "skipped": "skipped", "fault": "WRONG"}


@app.command("list")
def list_models(*, json: JsonOption = False) -> None:
    """List the bundled pair and published pairs that share a vocabulary."""
    from provisioning.catalogue import bundled_pair, known_pairs

    pair = bundled_pair()
    bundled = {"name": "bundled", "family": pair.vocabulary, "licence": "Apache-2.0"}
    rows = [
        {**bundled, "target": "bundled", "draft": ", ".join(pair.drafts)},
        *(asdict(known) for known in known_pairs()),
    ]
    if json:
        output.as_json(rows)
        return
    output.table(("name", "target", "draft", "family", "licence"), rows, empty="no pairs are known")


@app.command()
def check(
    draft: Annotated[
        Path | None, typer.Option(help="GGUF file to hold against --target.", metavar="FILE")
    ] = None,
    target: Annotated[
        Path | None,
        typer.Option(help="Hugging Face directory or GGUF file to hold against --draft.", metavar="DIR|FILE"),
    ] = None,
    *,
    loads: Annotated[
        bool, typer.Option("--load/--no-load", help="Load the models too: seconds, and their memory.")
    ] = True,
    json: JsonOption = False,
) -> None:
    """Check the bundled models, or that a draft and a target go together and load.

    Of the bundled ones: checksums, vocabulary fingerprints, that each loads in its runtime, and that
    transformers and llama.cpp give the same logits for the same weights (0.001 in float32, 0.25 with 16-bit
    weights as stored). What needs a library that is not installed is skipped, and said so. Exit code 4 when
    something is wrong.
    """
    from cli.model_check import check_bundled, check_pair
    from protocol.errors import ConfigError, ModelError
    from provisioning.catalogue import bundled_pair

    if (draft is None) != (target is None):
        raise ConfigError("--draft and --target go together", hint="name both, or neither")
    if draft and target:
        findings = list(check_pair(draft, target, loads=loads))
    else:
        findings = list(check_bundled(bundled_pair(), loads=loads))
    if json:
        output.as_json([finding.to_json() for finding in findings])
    else:
        rows = [{**finding.to_json(), "state": MARKS[finding.state]} for finding in findings]
        output.table(("state", "check", "text", "hint"), rows, empty="nothing was checked")
    faults = [finding for finding in findings if finding.state == "fault"]
    if faults:
        raise ModelError(faults[0].text, hint=faults[0].hint)
    say("all is well" if all(finding.state == "ok" for finding in findings) else "nothing is wrong so far")
