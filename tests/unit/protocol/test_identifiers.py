"""Names: what is legal, and that no device can be named like a backend."""

from __future__ import annotations

import pytest

from protocol.errors import ConfigError
from protocol.identifiers import backend_identity, check_name, is_uid, new_seed, new_uid


@pytest.mark.parametrize("name", ["a", "kitchen-pi-4", "0", "x" * 48])
def test_legal_names_pass(name: str) -> None:
    assert check_name("device", name) == name


@pytest.mark.parametrize(
    "name", ["", "x" * 49, "Kitchen", "a/b", "a+b", "#", "a.b", "verifier.v1", "ä", "a b", "a\n"]
)
def test_illegal_names_are_refused_with_the_name(name: str) -> None:
    with pytest.raises(ConfigError, match="device"):
        check_name("device", name)


def test_backend_identities_are_no_legal_device_names() -> None:
    identity = backend_identity("verifier", "v1")
    assert identity == "verifier.v1"
    with pytest.raises(ConfigError):
        check_name("device", identity)


def test_uids_and_seeds_are_fresh_64_bit_values() -> None:
    uids = {new_uid() for _ in range(100)}
    assert len(uids) == 100
    assert all(is_uid(uid) for uid in uids)
    assert not is_uid("0" * 15)
    assert len({new_seed() for _ in range(100)}) == 100
    assert max(new_seed() for _ in range(200)) > 2**60
