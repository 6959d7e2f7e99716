"""The pair that really comes with SLED: whole, and of one vocabulary."""

from __future__ import annotations

from protocol.vocabulary import check_vocabularies
from provisioning.catalogue import bundled_pair


def test_every_file_of_the_bundled_pair_has_its_checksum() -> None:
    pair = bundled_pair()
    assert {pair.target_gguf, *pair.drafts.values()} <= pair.checksums.keys()
    pair.verify()


def test_every_draft_and_both_forms_of_the_target_have_the_stated_vocabulary() -> None:
    pair = bundled_pair()
    for gguf in (*pair.drafts.values(), pair.target_gguf):
        assert check_vocabularies(gguf, pair.target) == pair.vocabulary
