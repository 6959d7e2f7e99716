"""The pairs of target and draft that are known to go together, and the one that comes with SLED."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protocol.errors import ModelError
from protocol.fingerprint import file_sha256

_HERE = Path(__file__).parent
_PAIR = _HERE / "pair"
_BOARDS_GB = (0.5, 1, 2, 4, 8, 16)
_REINSTALL = "install SLED again: its bundled models are incomplete"


@dataclass(frozen=True)
class KnownPair:
    """A published pair; where to get it and under which licence.

    Attributes:
        family: what the vocabulary is called; drafts of a family are meant for its targets.
        draft, target: Hugging Face ids; `draft_gguf`: the id that holds the draft as GGUF.
        draft_parameters_m, target_parameters_m: millions.
        is_gated: a licence must be accepted there first.
    """

    name: str
    family: str
    draft: str
    draft_gguf: str
    draft_parameters_m: int
    target: str
    target_parameters_m: int
    licence: str
    is_gated: bool

    @property
    def draft_mb(self) -> int:
        """Size of the draft's weights as Q8_0, which stores 32 weights in 34 bytes; in 10^6 bytes."""
        return -(-self.draft_parameters_m * 34 // 32)

    @property
    def board_gb(self) -> float:
        """Memory of the smallest usual board that the draft takes at most half of, in 10^9 bytes."""
        return next((size for size in _BOARDS_GB if 2 * self.draft_mb <= 1000 * size), _BOARDS_GB[-1])


@dataclass(frozen=True)
class BundledPair:
    """The models that come with SLED, by the paths and checksums of their manifest.

    Attributes:
        target: Hugging Face directory.
        target_gguf: the same model as GGUF.
        drafts: GGUF files by name; the first is the default.
        both_forms: Hugging Face directory and GGUF file of the models that come as both, by name.
        vocabulary: the fingerprint that all of them share.
        checksums: sha256 by path.
    """

    target: Path
    target_gguf: Path
    drafts: Mapping[str, Path]
    both_forms: Mapping[str, tuple[Path, Path]]
    vocabulary: str
    system_prompt: str
    checksums: Mapping[Path, str]

    def draft(self, name: str) -> Path:
        """The GGUF file of one draft.

        Raises:
            ModelError: there is none of that name.
        """
        if name not in self.drafts:
            raise ModelError(
                f"there is no bundled draft {name!r}", hint=f"bundled are {', '.join(self.drafts)}"
            )
        return self.drafts[name]

    def verify(self) -> None:
        """Compare every file with its checksum.

        Raises:
            ModelError: one is missing or damaged.
        """
        for path, expected in self.checksums.items():
            if not path.is_file():
                raise ModelError(f"bundled file {path} is missing", hint=_REINSTALL)
            if file_sha256(path) != expected:
                raise ModelError(f"bundled file {path} is damaged", hint=_REINSTALL)


def known_pairs() -> tuple[KnownPair, ...]:
    """The catalogue, in the order in which to show it."""
    content = tomllib.loads((_HERE / "catalogue.toml").read_text(encoding="utf-8"))
    return tuple(KnownPair(**entry) for entry in content["pair"])


def bundled_pair(directory: Path = _PAIR) -> BundledPair:
    """The pair that comes with SLED.

    Raises:
        ModelError: it is not there, or its manifest cannot be read.
    """
    try:
        manifest = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
        return _pair(directory, manifest)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"the bundled pair in {directory} cannot be used: {error!r:.120}", hint=_REINSTALL
        ) from error


def _pair(directory: Path, manifest: Mapping[str, Any]) -> BundledPair:
    models = dict(manifest["models"])
    both_forms = {
        name: (directory / model["safetensors"], directory / model["gguf"])
        for name, model in models.items()
        if model["safetensors"]
    }
    target = models.pop("target")
    prompt = directory / "system_prompt.txt"
    return BundledPair(
        target=directory / target["safetensors"],
        target_gguf=directory / target["gguf"],
        drafts={name: directory / model["gguf"] for name, model in models.items()},
        both_forms=both_forms,
        vocabulary=str(manifest["vocabulary"]["fingerprint"]),
        system_prompt=prompt.read_text(encoding="utf-8").strip() if prompt.exists() else "",
        checksums={directory / name: str(entry["sha256"]) for name, entry in manifest["files"].items()},
    )
