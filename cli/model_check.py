"""Checks of models as the system will use them: files, vocabularies, loading, and equal logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cli.process_apart import ProcessApart
from protocol.errors import MissingLibraryError, ModelError, SledError

if TYPE_CHECKING:
    from provisioning.catalogue import BundledPair
    from provisioning.local_catalogue import LocalModel

EXPANDED_TOLERANCE = 1e-3
"""Both libraries in fp32: only the order of additions differs, some 4e-5 for the bundled target."""
STORED_TOLERANCE = 0.25
"""llama.cpp on 16-bit weights rounds activations as well, some 0.09 for the bundled target."""
TEXTS = (
    "lower the kitchen blinds",
    "Once upon a time, there lived 2 kings' sons -- they didn't  quarrel.\n\n\tNever!\n",
    "def main(argv):\n    return {'a': [1, 23, 456]}  # café ☕ naïve\r\n",
)
_N_DRAFTS = 8


@dataclass(frozen=True)
class ModelFinding:
    """One thing that was looked at; `hint` says what to do when it is wrong."""

    check: str
    state: Literal["ok", "skipped", "fault"]
    text: str
    hint: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def check_bundled(pair: BundledPair, *, loads: bool) -> Iterator[ModelFinding]:
    """Look at the pair that comes with SLED; what builds on a fault is not tried.

    Args:
        loads: load the models as well, which takes seconds and their memory.
    """
    from protocol.vocabulary import check_vocabularies

    try:
        pair.verify()
        yield ModelFinding("checksums", "ok", f"{len(pair.checksums)} files are as they were released")
        for file in (*pair.drafts.values(), pair.target_gguf):
            check_vocabularies(file, pair.target)
    except SledError as error:
        yield _fault("files", error)
        return
    yield ModelFinding("vocabulary", "ok", f"{pair.vocabulary} in the target and all drafts")
    if loads:
        with ProcessApart() as apart:
            yield from _check_loads(apart, pair.target, tuple(pair.drafts.values()))
            for name, (directory, gguf) in pair.both_forms.items():
                yield from check_same_logits(apart, name, directory, gguf)


def check_pair(draft: Path, target: Path, *, loads: bool) -> Iterator[ModelFinding]:
    """Look at a draft (GGUF) and a target (Hugging Face directory or GGUF) of somebody else's."""
    from protocol.vocabulary import check_vocabularies

    try:
        vocabulary = check_vocabularies(draft, target)
    except SledError as error:
        yield _fault("vocabulary", error)
        return
    yield ModelFinding("vocabulary", "ok", f"{vocabulary} in {draft.name} and {target.name}")
    if loads:
        with ProcessApart() as apart:
            yield from _check_loads(apart, target, (draft,))


def check_registered(model: LocalModel, *, loads: bool) -> Iterator[ModelFinding]:
    """Look at a model of the catalogue: the files as they were, and that it runs."""
    try:
        model.verify()
    except SledError as error:
        yield _fault("checksums", error)
        return
    yield ModelFinding("checksums", "ok", f"{model.path} is as it was registered")
    if loads:
        drafts = (model.path,) if model.facts.form == "gguf" else ()
        with ProcessApart() as apart:
            yield from _check_loads(apart, model.path, drafts)


def check_same_logits(apart: ProcessApart, name: str, directory: Path, gguf: Path) -> Iterator[ModelFinding]:
    """Hold one model in transformers against the same in llama.cpp, expanded to fp32 and as stored."""
    from edge_verifier.logit_probe import largest_difference, probe_target

    try:
        texts = apart.run(_probe_texts, gguf)
        exact = apart.run(probe_target, directory, texts, dtype="float32")
        for dtype, tolerance in (("float32", EXPANDED_TOLERANCE), ("auto", STORED_TOLERANCE)):
            other = apart.run(probe_target, gguf, texts, dtype=dtype)
            difference = largest_difference(exact, other)
            text = (
                f"{name}: transformers in float32 and llama.cpp in {other.info.dtype} differ by"
                f" {difference:.2g} at most, {tolerance:g} is allowed"
            )
            # Written so that a difference that is no number is a fault.
            is_near = difference <= tolerance
            hint = "" if is_near else "the files hold different weights: export the GGUF file again"
            yield ModelFinding("logits", "ok" if is_near else "fault", text, hint)
    except SledError as error:
        yield _not_done("logits", error)


def _check_loads(apart: ProcessApart, target: Path, drafts: Sequence[Path]) -> Iterator[ModelFinding]:
    for draft in drafts:
        try:
            yield ModelFinding("loads", "ok", f"{draft.name}: {apart.run(_load_draft, draft)}")
        except SledError as error:
            yield _not_done("loads", error)
    try:
        yield ModelFinding("loads", "ok", f"{target.name}: {apart.run(_load_target, target)}")
    except SledError as error:
        yield _not_done("loads", error)


def _load_draft(file: Path) -> str:
    """Draft a few tokens as a device does; says with what."""
    from device_agent.drafters import load_drafter, load_vocabulary
    from protocol.messages import SamplerSettings

    tokens = load_vocabulary(file).encode(TEXTS[0])
    drafter = load_drafter("llama.cpp", file, max_context=256)
    try:
        drafter.sync(tokens)
        drafts = drafter.draft(SamplerSettings(seed=0, temperature=0.0), _N_DRAFTS)
    finally:
        drafter.close()
    if not drafts:
        raise ModelError(f"{file} drafts nothing", hint="choose another draft model")
    return f"drafts in {drafter.info.name}"


def _load_target(target: Path) -> str:
    """Run one step as a verifier does; says with what."""
    from edge_verifier.logit_probe import probe_target

    info = probe_target(target, [[0, 1]]).info
    return f"runs in {info.name} in {info.dtype}"


def _probe_texts(gguf: Path) -> list[list[int]]:
    from device_agent.drafters import load_vocabulary

    vocabulary = load_vocabulary(gguf)
    return [vocabulary.encode(text) for text in TEXTS]


def _not_done(check: str, error: SledError) -> ModelFinding:
    """A library that is not installed is no fault of the model: devices have no torch."""
    if isinstance(error, MissingLibraryError):
        return ModelFinding(check, "skipped", str(error), error.hint)
    return _fault(check, error)


def _fault(check: str, error: SledError) -> ModelFinding:
    return ModelFinding(check, "fault", str(error), error.hint)
