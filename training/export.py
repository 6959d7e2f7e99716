"""Export of the pair: safetensors, GGUF and a manifest of checksums.

Command: `python -m training.export --work FOLDER --out provisioning/pair`.
"""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from tokenizers import Tokenizer
from transformers import GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from protocol.fingerprint import vocabulary_fingerprint
from training import gguf_file
from training.chat import DOCUMENT, END
from training.gguf_file import Precision
from training.tokenizer import wrapped
from training.trainer import restored_model

PRECISIONS = {
    "target": Precision.BF16,
    "draft": Precision.F16,
    "draft-micro": Precision.F16,
}
WITH_SAFETENSORS = ("target", "draft")


def rounded(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """The model with every weight rounded to bf16 and kept in fp32.

    What is evaluated and what is written are then the same numbers, in every dtype
    from bf16 up.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(torch.bfloat16).float())
    return model


def export(work: Path, out: Path) -> None:
    """Write every model of the pair that has a checkpoint in `work`, and the manifest."""
    tokenizer = wrapped(Tokenizer.from_file(str(work / "tokenizer.json")))
    out.mkdir(parents=True, exist_ok=True)
    for name, precision in PRECISIONS.items():
        path = work / f"{name}.pt"
        if not path.exists():
            continue
        model = rounded(restored_model(path))
        gguf_file.write(out / f"{name}.gguf", f"sled {name}", model, tokenizer, precision)
        if name in WITH_SAFETENSORS:
            _save(model, out / name)
            _save_tokenizer(tokenizer, out / name)
    _write_manifest(out, tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))))


def _save(model: LlamaForCausalLM, folder: Path) -> None:
    config: Any = model.config
    stops = [config.eos_token_id, config.bos_token_id]
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=stops, pad_token_id=config.pad_token_id
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)


def _save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Files that transformers 4 and 5 both read, the chat template among the settings."""
    tokenizer.save_pretrained(folder, save_jinja_files=False)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def _write_manifest(out: Path, tokens: list[str]) -> None:
    models = [name for name in PRECISIONS if (out / f"{name}.gguf").exists()]
    files = [out / f"{name}.gguf" for name in models]
    for name in WITH_SAFETENSORS:
        files += sorted((out / name).iterdir())
    manifest = {
        "format": 1,
        "models": {
            name: {"gguf": f"{name}.gguf", "safetensors": name if name in WITH_SAFETENSORS else None}
            for name in models
        },
        "vocabulary": {
            "entries": len(tokens),
            "fingerprint": vocabulary_fingerprint(tokens),
            "stop_ids": sorted(tokens.index(token) for token in (DOCUMENT, END)),
        },
        "files": {
            path.relative_to(out).as_posix(): {
                "bytes": path.stat().st_size,
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            }
            for path in sorted(files)
        },
    }
    (out / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


def main(
    *,
    work: Annotated[Path, typer.Option(help="Work folder with tokenizer and checkpoints.")],
    out: Annotated[Path, typer.Option(help="Folder of the pair.")],
) -> None:
    """Export the pair."""
    export(work, out)


if __name__ == "__main__":
    typer.run(main)
