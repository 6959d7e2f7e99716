"""Fingerprints: what they depend on, and what they do not."""

from __future__ import annotations

from pathlib import Path

from protocol.fingerprint import file_sha256, files_sha256, target_fingerprint, vocabulary_fingerprint

TOKENS = ["<|end|>", "a", "b", "Ġthe"]


def test_order_and_content_of_tokens_count() -> None:
    prints = {
        vocabulary_fingerprint(tokens)
        for tokens in (TOKENS, TOKENS[::-1], TOKENS[:-1], [*TOKENS[:-1], "Ġa"], ["<|end|>a", "b", "Ġthe"])
    }
    assert len(prints) == 5


def test_padding_entries_at_the_end_do_not_count_but_inside_they_do() -> None:
    assert vocabulary_fingerprint([*TOKENS, "[PAD4]", "[PAD5]"]) == vocabulary_fingerprint(TOKENS)
    assert vocabulary_fingerprint(["[PAD4]", *TOKENS]) != vocabulary_fingerprint(TOKENS)


def test_files_are_named_and_read_in_name_order(tmp_path: Path) -> None:
    first, second = tmp_path / "a.bin", tmp_path / "b.bin"
    first.write_bytes(b"x" * 3_000_000)
    second.write_bytes(b"y")
    assert files_sha256([first, second]) == files_sha256([second, first])
    before = files_sha256([first, second])
    second.rename(tmp_path / "c.bin")
    assert files_sha256([first, tmp_path / "c.bin"]) != before
    assert file_sha256(tmp_path / "c.bin") == (
        "a1fce4363854ff888cff4b8e7875d600c2682390412a8cf79b37d0b11148b0fa"
    )


def test_weights_dtype_and_engine_name_a_target() -> None:
    prints = {
        target_fingerprint(*what)
        for what in (("aa", "fp32", "hf"), ("ab", "fp32", "hf"), ("aa", "bf16", "hf"), ("aa", "fp32", "gguf"))
    }
    assert len(prints) == 4
