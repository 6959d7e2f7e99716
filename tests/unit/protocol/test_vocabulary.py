"""Vocabularies from files: equal for both formats of one model, refused with both named otherwise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from gguf import GGUFWriter

from protocol.errors import ModelError, VocabularyMismatchError
from protocol.fingerprint import vocabulary_fingerprint
from protocol.vocabulary import check_vocabularies, gguf_vocabulary, hf_vocabulary

TOKENS = ["<s>", "a", "b", "\u2581the", "\u2581\u2581"]


def write_hf(directory: Path, *, n_rows: int | None = None, unigram: bool = False) -> Path:
    directory.mkdir()
    pieces = TOKENS[:4]
    vocab = [[piece, 0.0] for piece in pieces] if unigram else {piece: i for i, piece in enumerate(pieces)}
    added = [{"id": 0, "content": "<s>", "special": True}, {"id": 4, "content": TOKENS[4], "special": False}]
    added.append({"id": 6, "content": "<end>", "special": True})
    content = {"model": {"type": "BPE", "vocab": vocab}, "added_tokens": added}
    (directory / "tokenizer.json").write_text(json.dumps(content))
    if n_rows is not None:
        (directory / "config.json").write_text(json.dumps({"vocab_size": n_rows}))
    return directory


def write_gguf(path: Path, tokens: list[str]) -> Path:
    writer = GGUFWriter(path, "llama")
    if tokens:
        writer.add_token_list(tokens)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("unigram", [False, True])
def test_added_tokens_are_included_and_gaps_named_like_converters_do(tmp_path: Path, unigram: bool) -> None:  # noqa: FBT001 - parametrised
    assert hf_vocabulary(write_hf(tmp_path / "m", unigram=unigram)) == [*TOKENS, "[PAD5]", "<end>"]


def test_both_formats_of_one_model_have_one_fingerprint(tmp_path: Path) -> None:
    """A converter pads to the model's rows and writes added spaces as spaces."""
    directory = write_hf(tmp_path / "m", n_rows=9)
    tokens = [*TOKENS[:4], "  ", "[PAD5]", "<end>", "[PAD7]", "[PAD8]"]
    file = write_gguf(tmp_path / "m.gguf", tokens)
    assert gguf_vocabulary(file) == tokens
    fingerprint = check_vocabularies(file, directory)
    assert fingerprint == vocabulary_fingerprint(tokens) == vocabulary_fingerprint(hf_vocabulary(directory))


def test_tokens_that_the_model_has_no_row_for_do_not_count(tmp_path: Path) -> None:
    assert hf_vocabulary(write_hf(tmp_path / "m", n_rows=5)) == TOKENS


def test_a_mismatch_names_both_models_and_vocabularies(tmp_path: Path) -> None:
    directory = write_hf(tmp_path / "target-model")
    file = write_gguf(tmp_path / "other-draft.gguf", ["x", "y"])
    with pytest.raises(VocabularyMismatchError) as caught:
        check_vocabularies(file, directory)
    for part in ("other-draft.gguf", "target-model", caught.value.draft_vocabulary):
        assert part in str(caught.value)
    assert caught.value.draft_vocabulary != caught.value.target_vocabulary


def test_a_gguf_can_be_the_target(tmp_path: Path) -> None:
    one, other = (write_gguf(tmp_path / f"{name}.gguf", ["x", "y"]) for name in ("one", "other"))
    assert check_vocabularies(one, other) == vocabulary_fingerprint(["x", "y"])


def test_a_gguf_without_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"bare\.gguf has no tokenizer"):
        gguf_vocabulary(write_gguf(tmp_path / "bare.gguf", []))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "has no tokenizer.json"),
        (b"{", "cannot be read"),
        (b"[]", "not a JSON object"),
        (b"{}", "no vocabulary"),
        (b'{"model": {"vocab": {}}}', "has 0 tokens"),
        (b'{"model": {"vocab": {"a": -1}}}', "negative"),
        (b'{"model": {"vocab": {"a": 99999999}}}', "has 100000000 tokens"),
        (b'{"model": {"vocab": {"a": "x"}}}', "no vocabulary"),
        (b'{"model": {"vocab": [[]]}}', "no vocabulary"),
    ],
)
def test_a_directory_without_usable_tokenizer_is_refused(
    tmp_path: Path, content: bytes | None, reason: str
) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ModelError, match=reason):
        hf_vocabulary(tmp_path)
