"""A draft model with nothing but a vocabulary: enough for bundles, which never load it."""

from __future__ import annotations

from pathlib import Path

from gguf import GGUFWriter


def write_vocabulary(path: Path) -> Path:
    """A GGUF file with two tokens and no weights."""
    writer = GGUFWriter(path, "llama")
    writer.add_token_list(["a", "b"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path
