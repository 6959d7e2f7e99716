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
        Path | None, typer.Option(help="Hugging Face directory to hold against --draft.", metavar="DIR")
    ] = None,
    *,
    json: JsonOption = False,
) -> None:
    """Check the bundled models' files, or that a draft and a target share a vocabulary."""
    from protocol.errors import ConfigError

    if (draft is None) != (target is None):
        raise ConfigError("--draft and --target go together", hint="name both, or neither")
    result = _check_pair(draft, target) if draft and target else _check_bundled()
    output.as_json(result) if json else output.fields(result)
    say("all is well")


def _check_pair(draft: Path, target: Path) -> dict[str, str]:
    from protocol.vocabulary import check_vocabularies

    vocabulary = check_vocabularies(draft, target)
    return {"draft": str(draft), "target": str(target), "vocabulary": vocabulary}


def _check_bundled() -> dict[str, object]:
    from protocol.vocabulary import check_vocabularies
    from provisioning.catalogue import bundled_pair

    pair = bundled_pair()
    pair.verify()
    vocabularies = {name: check_vocabularies(file, pair.target) for name, file in pair.drafts.items()}
    return {"files": len(pair.checksums), "vocabulary": pair.vocabulary, "drafts": sorted(vocabularies)}
