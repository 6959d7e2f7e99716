"""`sled models`: which models go together, and whether the bundled ones are whole."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli import output
from cli.diagnostics import say
from cli.options import JsonOption, models_folder

if TYPE_CHECKING:
    from provisioning.local_catalogue import LocalModel

app = typer.Typer(help="Models on this machine, and known pairs of target and draft.", no_args_is_help=True)

MARKS = {"ok": "ok", "skipped": "skipped", "fault": "WRONG"}


@app.command("list")
def list_models(*, json: JsonOption = False) -> None:
    """List the models on this machine, which drafts fit which of them, and published pairs."""
    from cli.model_table import drafts_by_target, local_rows
    from provisioning.catalogue import known_pairs

    models = local_rows(models_folder())
    pairs = [{**asdict(pair), "draft_mb": pair.draft_mb, "board_gb": pair.board_gb} for pair in known_pairs()]
    if json:
        output.as_json({"models": models, "pairs": pairs})
        return
    columns = ("name", "form", "family", "size", "vocabulary", "licence", "drafts")
    output.table(columns, drafts_by_target(models), empty="no models are here")
    output.line()
    output.line("Published pairs of one vocabulary, for sled models add; the draft's size is that of Q8_0,")
    output.line("and a board of so much memory has as much again for the rest:")
    columns = ("name", "target", "draft_gguf", "draft_mb", "board_gb", "family", "licence")
    output.table(columns, pairs, empty="no pairs are known")


app.command("ls", hidden=True)(list_models)


@app.command()
def add(
    source: Annotated[
        str, typer.Argument(help="Model directory, GGUF file, or Hugging Face id.", metavar="DIR|FILE|HF-ID")
    ],
    *,
    name: Annotated[str | None, typer.Option(help="What to call it. [default: from its source]")] = None,
    file: Annotated[
        str | None, typer.Option(help="GGUF file of a Hugging Face id that has several.", metavar="NAME")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hugging Face id.")] = None,
    json: JsonOption = False,
) -> None:
    """Register a model under a name that --model and --target take; a Hugging Face id is fetched first.

    Vocabulary, size and checksum are computed from the files. A directory or file stays where it is. The
    catalogue is in $SLED_MODELS, or ~/.local/share/sled/models.
    """
    from cli.model_table import row
    from provisioning.registration import register

    model = register(
        models_folder(), source, name=name, file=file, revision=revision, shows_progress=sys.stderr.isatty()
    )
    output.as_json(row(model)) if json else output.fields(row(model))
    say(f"registered as {model.name}; look at it with: sled models list")


@app.command("rm")
def remove(
    name: Annotated[str, typer.Argument(help="Name in the catalogue.", metavar="NAME")],
) -> None:
    """Take a model out of the catalogue. What was fetched for it is deleted; your own files stay."""
    from provisioning.local_catalogue import LocalCatalogue

    model = LocalCatalogue(models_folder()).remove(name)
    say(f"{name} is out of the catalogue" + ("" if model.is_downloaded else f"; {model.path} is as it was"))


@app.command()
def check(
    name: Annotated[
        str | None,
        typer.Argument(help="Registered model. [default: the bundled ones]", metavar="NAME"),
    ] = None,
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
    """Check the bundled models, a registered one, or that a draft and a target go together and load.

    Of the bundled ones: checksums, vocabulary fingerprints, that each loads in its runtime, and that
    transformers and llama.cpp give the same logits for the same weights (0.001 in float32, 0.25 with 16-bit
    weights as stored). What needs a library that is not installed is skipped, and said so. Exit code 4 when
    something is wrong.
    """
    from cli.model_check import check_bundled, check_pair, check_registered
    from protocol.errors import ConfigError, ModelError
    from provisioning.catalogue import bundled_pair

    if (draft is None) != (target is None):
        raise ConfigError("--draft and --target go together", hint="name both, or neither")
    if name and draft:
        raise ConfigError("NAME and --draft with --target exclude each other", hint="leave one out")
    if name:
        findings = list(check_registered(_named(name), loads=loads))
    elif draft and target:
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


def _named(name: str) -> LocalModel:
    from protocol.errors import ModelError
    from provisioning.local_catalogue import LocalCatalogue

    model = LocalCatalogue(models_folder()).models().get(name)
    if model is None:
        raise ModelError(f"no model {name!r} is registered", hint="sled models list")
    return model
