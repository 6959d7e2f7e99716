"""Bundles: made whole, installed whole, and nothing hostile or damaged gets in."""

from __future__ import annotations

import contextlib
import io
import json
import stat
import tarfile
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from protocol.errors import ModelError, ProvisioningError
from provisioning.bundle import BrokerAddress, ModelFiles, install, make_bundle
from provisioning.fleet_directory import FleetDirectory

BROKER = BrokerAddress(host="edge.lan", port=8883)
Members = list[tuple[tarfile.TarInfo, bytes]]


@pytest.fixture
def bundle(fleet: FleetDirectory, draft_model: Path, tmp_path: Path) -> Path:
    settings = {"temperature": 0.5, "system_prompt": 'Say "hi"\n\tto \x7f ü.', "keep_checkpoint": False}
    return make_bundle(
        fleet, "pi-1", ModelFiles.of(draft_model, "tiny"), BROKER, tmp_path / "pi-1.sled", settings=settings
    )


def test_an_installed_bundle_holds_all_that_a_device_reads(
    bundle: Path, fleet: FleetDirectory, draft_model: Path, tmp_path: Path
) -> None:
    installed = install(bundle, tmp_path / "home")
    assert (installed.fleet, installed.device) == ("home", "pi-1")
    content = tomllib.loads((installed.home / "device.toml").read_text())
    assert content["identity"] == {"fleet": "home", "device": "pi-1"}
    assert content["broker"] == {"host": "edge.lan", "port": 8883, "server_name": ""}
    assert content["settings"] == {
        "temperature": 0.5,
        "system_prompt": 'Say "hi"\n\tto \x7f ü.',
        "keep_checkpoint": False,
    }
    model = ModelFiles.of(draft_model, "tiny")
    assert content["model"] == {
        "path": "models/Tiny-draft.gguf",
        "sha256": model.sha256,
        "vocabulary": model.vocabulary,
        "name": "tiny",
    }
    assert (installed.home / content["model"]["path"]).read_bytes() == draft_model.read_bytes()
    assert (installed.home / "identity/broker-ca.pem").read_bytes() == fleet.server_ca_file.read_bytes()
    assert (installed.home / "journal").is_dir()


def test_bundle_and_key_are_readable_by_their_owner_only(bundle: Path, tmp_path: Path) -> None:
    home = install(bundle, tmp_path / "home").home
    assert stat.S_IMODE(bundle.stat().st_mode) == 0o600
    assert stat.S_IMODE((home / "identity/key.pem").stat().st_mode) == 0o600
    assert stat.S_IMODE(home.stat().st_mode) == 0o700


def test_the_layout_of_a_bundle_is_fixed(bundle: Path) -> None:
    with tarfile.open(bundle) as archive:
        entries = archive.getmembers()
    assert [entry.name for entry in entries] == [
        "manifest.json",
        "identity/key.pem",
        "identity/cert.pem",
        "identity/broker-ca.pem",
        "models/Tiny-draft.gguf",
    ]
    assert {(entry.mtime, entry.uid, entry.uname, entry.mode) for entry in entries} == {(0, 0, "", 0o600)}


def test_the_private_key_stays_out_of_the_fleet_directory(bundle: Path, fleet: FleetDirectory) -> None:
    with tarfile.open(bundle) as archive:
        key = archive.extractfile("identity/key.pem")
        assert key is not None
        secret = key.read()
    files = [path for path in fleet.path.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert not any(secret in path.read_bytes() for path in files)


def test_a_known_device_is_not_provisioned_again_unless_on_purpose(
    bundle: Path, fleet: FleetDirectory, draft_model: Path, tmp_path: Path
) -> None:
    model, other = ModelFiles.of(draft_model), tmp_path / "other.sled"
    before = bundle.read_bytes()
    with pytest.raises(ProvisioningError, match="pi-1 is provisioned already"):
        make_bundle(fleet, "pi-1", model, BROKER, other)
    with pytest.raises(ProvisioningError, match="exists"):
        make_bundle(fleet, "pi-2", model, BROKER, bundle)
    assert bundle.read_bytes() == before
    assert not other.exists()
    make_bundle(fleet, "pi-1", model, BROKER, bundle, replace=True)
    assert bundle.read_bytes() != before
    assert [record.id for record in fleet.registry.devices()] == ["pi-1"]


@pytest.mark.parametrize("device", ["verifier.v1", "a/b", "Pi", ""])
def test_an_illegal_device_id_leaves_no_trace(
    fleet: FleetDirectory, draft_model: Path, tmp_path: Path, device: str
) -> None:
    with pytest.raises(ProvisioningError, match="legal name"):
        make_bundle(fleet, device, ModelFiles.of(draft_model), BROKER, tmp_path / "x.sled")
    assert fleet.registry.devices() == ()
    assert not list(tmp_path.glob("*.sled*"))


def test_a_setting_that_is_no_plain_value_is_refused(
    fleet: FleetDirectory, draft_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(ProvisioningError, match=r"settings\.stop"):
        make_bundle(
            fleet,
            "pi-1",
            ModelFiles.of(draft_model),
            BROKER,
            tmp_path / "x.sled",
            settings={"stop": ["a"]},  # type: ignore[dict-item]  # the case under test
        )
    assert fleet.registry.devices() == ()


def test_a_model_that_is_no_gguf_gets_into_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"PK\x03\x04")
    with pytest.raises(ModelError, match=r"m\.gguf is not a usable GGUF file"):
        ModelFiles.of(tmp_path / "m.gguf")


def test_an_installed_device_is_not_destroyed_unless_on_purpose(
    bundle: Path, fleet: FleetDirectory, draft_model: Path, tmp_path: Path
) -> None:
    home = install(bundle, tmp_path / "home").home
    (home / "journal/session").write_text("text")
    key = (home / "identity/key.pem").read_bytes()
    other = make_bundle(fleet, "pi-2", ModelFiles.of(draft_model), BROKER, tmp_path / "pi-2.sled")
    with pytest.raises(ProvisioningError, match="already holds pi-1"):
        install(other, home)
    assert (home / "identity/key.pem").read_bytes() == key
    install(bundle, home, replace=True)
    assert (home / "journal/session").read_text() == "text", "the same device keeps its journal"
    install(other, home, replace=True)
    assert not (home / "journal/session").exists(), "another device does not see it"
    assert "pi-2" in (home / "device.toml").read_text()
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("n_done", range(5))
def test_a_replacement_killed_at_any_moment_loses_no_conversation(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_done: int
) -> None:
    home = install(bundle, tmp_path / "home").home
    (home / "journal/one").write_text("text")
    (home / "journal/two").write_text("more")
    left = [n_done]
    rename = Path.rename

    def renamed(self: Path, target: Path) -> Path:
        if not left[0]:
            raise Killed
        left[0] -= 1
        return rename(self, target)

    with monkeypatch.context() as patch, contextlib.suppress(Killed):
        patch.setattr(Path, "rename", renamed)
        install(bundle, home, replace=True)
    install(bundle, home, replace=True)
    assert {file.name: file.read_text() for file in (home / "journal").iterdir()} == {
        "one": "text",
        "two": "more",
    }
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_home_with_other_things_in_it_is_left_alone(bundle: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "letters.txt").write_text("mine")
    with pytest.raises(ProvisioningError, match="holds no device"):
        install(bundle, home, replace=True)
    assert [path.name for path in home.iterdir()] == ["letters.txt"]


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.3, 0.6, 0.9])
def test_a_truncated_bundle_is_refused(bundle: Path, tmp_path: Path, fraction: float) -> None:
    content = bundle.read_bytes()
    bundle.write_bytes(content[: int(len(content) * fraction)])
    _assert_refused(bundle, tmp_path / "home")


@pytest.mark.parametrize("content", [b"hello", b"\x1f\x8b" + b"\0" * 100, b"\0" * 10240])
def test_what_is_no_bundle_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.sled").write_bytes(content)
    _assert_refused(tmp_path / "x.sled", tmp_path / "home")


def test_a_missing_bundle_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ProvisioningError, match="No such file"):
        install(tmp_path / "none.sled", tmp_path / "home")


def _renamed(index: int, name: str) -> Callable[[Members], Members]:
    def change(members: Members) -> Members:
        members[index][0].name = name
        return members

    return change


def _linked(members: Members) -> Members:
    entry = members[1][0]
    entry.type, entry.linkname, entry.size = tarfile.SYMTYPE, "/etc/passwd", 0
    return [*members[:1], (entry, b""), *members[2:]]


def _changed_model(members: Members) -> Members:
    entry, content = members[4]
    return [*members[:4], (entry, content[:-1] + bytes([content[-1] ^ 1]))]


def _swapped_key(members: Members) -> Members:
    """The broker's CA where the key should be, with a manifest that says so."""
    manifest = json.loads(members[0][1])
    manifest["members"]["identity/key.pem"] = manifest["members"]["identity/broker-ca.pem"]
    return _with_manifest(manifest, [members[0], (members[1][0], members[3][1]), *members[2:]])


def _other_device(members: Members) -> Members:
    return _with_manifest(json.loads(members[0][1]) | {"device": "pi-2"}, members)


def _escaping_model(members: Members) -> Members:
    manifest = json.loads(members[0][1])
    manifest["model"]["file"] = "../../x.gguf"
    return _with_manifest(manifest, members)


def _huge_manifest(members: Members) -> Members:
    return [(members[0][0], members[0][1] + b" " * 70_000), *members[1:]]


def _with_manifest(manifest: dict[str, object], members: Members) -> Members:
    return [(members[0][0], json.dumps(manifest).encode()), *members[1:]]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda members: members[:4], "missing"),
        (lambda members: members[1:], "does not begin with a manifest"),
        (lambda members: [*members, members[1]], "does not belong"),
        (_renamed(4, "models/../../../x.gguf"), "does not belong"),
        (_renamed(1, "/etc/cron.d/x"), "does not belong"),
        (_linked, "not a plain file"),
        (_changed_model, "checksum of models/Tiny-draft.gguf is wrong"),
        (_swapped_key, "key cannot be read"),
        (_other_device, "not that of pi-2"),
        (_escaping_model, "faults in its manifest"),
        (_huge_manifest, "more than 65536"),
        (lambda members: _with_manifest({"format": 1}, members), "faults in its manifest"),
        (lambda members: _with_manifest(json.loads(members[0][1]) | {"format": 2}, members), "format 2"),
    ],
)
def test_a_changed_bundle_is_refused_with_its_reason(
    bundle: Path, tmp_path: Path, change: Callable[[Members], Members], reason: str
) -> None:
    with tarfile.open(bundle) as archive:
        members = []
        for entry in archive.getmembers():
            file = archive.extractfile(entry)
            assert file is not None
            members.append((entry, file.read()))
    with tarfile.open(bundle, "w:gz") as archive:
        for entry, content in change(members):
            if entry.isreg():
                entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    _assert_refused(bundle, tmp_path / "home", reason)


def _assert_refused(bundle: Path, home: Path, reason: str = "bundle") -> None:
    before = set(home.parent.iterdir())
    with pytest.raises(ProvisioningError, match=reason) as caught:
        install(bundle, home)
    assert "\n" not in str(caught.value)
    assert set(home.parent.iterdir()) == before, "nothing is left behind"
