"""`sled session ls` and `rm`: what is kept of a device's conversations, on a real broker."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from cli.main import run
from device_agent.chat import ChatOptions
from device_agent.chat_events import TurnStats
from device_agent.config import DeviceConfig
from device_agent.shelf import Shelf, chosen_sessions
from protocol.errors import ConfigError
from tests.integration.live_chat import last, serving, wait_for
from tests.live_fleet import WAIT_S, LiveFleet
from tests.table_device import TableDrafter, table_agent, table_engine

SHORT = ChatOptions(seed=4, temperature=0.9, max_tokens=20)


def write_config(fleet: LiveFleet, home: Path, device: str) -> None:
    """The file that an installed bundle has beside the identity that `table_agent` puts there."""
    broker = fleet.broker
    (home / "device.toml").write_text(
        f'[identity]\nfleet = "f"\ndevice = "{device}"\n'
        f'[broker]\nhost = "{broker.host}"\nport = {broker.device_port}\n[model]\npath = "none.gguf"\n'
    )


def talk(fleet: LiveFleet, home: Path, device: str) -> TurnStats:
    """One conversation, left open."""
    with table_agent(fleet, device, home, TableDrafter(table_engine())) as agent:
        agent.wait_ready(WAIT_S)
        stats = last(agent.chat(SHORT).send("secret"))
    write_config(fleet, home, device)
    return stats


def listed(capsys: pytest.CaptureFixture[str], home: Path, *options: str) -> list[dict[str, object]]:
    """What `sled session ls --json` prints."""
    assert run(["session", "ls", "--home", str(home), "--json", *options]) == 0
    rows: list[dict[str, object]] = orjson.loads(capsys.readouterr().out)
    return rows


def test_what_is_kept_is_listed_and_removed_everywhere(
    live_fleet: LiveFleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Journal, broker and the verifier's own memory."""
    with serving(live_fleet, table_engine()) as service:
        stats = talk(live_fleet, tmp_path, "dev-a")
        (row,) = listed(capsys, tmp_path)
        assert row["n_tokens"] == len(stats.prompt_ids) + stats.tokens
        assert (row["is_journalled"], row["is_finished"], row["verifiers"]) == (True, True, ["v1"])
        assert service.n_sessions == 1
        uid = str(row["uid"])
        assert run(["session", "rm", uid[:6], "--home", str(tmp_path)]) == 0
        assert capsys.readouterr().err == "removed 1 of 1 conversations\n"
        assert listed(capsys, tmp_path) == []
        assert list((tmp_path / "journal").glob("*.journal")) == []
        wait_for(lambda: service.n_sessions == 0)


def test_a_copy_that_only_the_broker_has_is_listed_and_removed(
    live_fleet: LiveFleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(live_fleet, table_engine()):
        talk(live_fleet, tmp_path, "dev-b")
    capsys.readouterr()
    for file in (tmp_path / "journal").glob("*.journal"):
        file.unlink()
    (row,) = listed(capsys, tmp_path)
    assert (row["is_journalled"], row["verifiers"]) == (False, ["v1"])
    assert run(["session", "rm", "--all", "--home", str(tmp_path)]) == 0
    assert "not there to be told: verifier v1" in capsys.readouterr().err
    assert listed(capsys, tmp_path) == []


def test_local_asks_and_changes_nothing_at_the_broker(
    live_fleet: LiveFleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(live_fleet, table_engine()):
        talk(live_fleet, tmp_path, "dev-c")
    (row,) = listed(capsys, tmp_path, "--local")
    assert row["verifiers"] is None
    assert run(["session", "rm", "--all", "--local", "--home", str(tmp_path)]) == 0
    assert [each["is_journalled"] for each in listed(capsys, tmp_path)] == [False]


def test_without_the_broker_the_list_is_of_this_device_and_nothing_is_removed(
    own_fleet: LiveFleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(own_fleet, table_engine()):
        talk(own_fleet, tmp_path, "dev-a")
    own_fleet.broker.kill()
    assert len(listed(capsys, tmp_path, "--timeout", "0.3")) == 1
    assert run(["session", "rm", "--all", "--home", str(tmp_path), "--timeout", "0.3"]) == 3
    assert len(listed(capsys, tmp_path, "--local")) == 1


def test_an_open_conversation_is_not_removed(live_fleet: LiveFleet, tmp_path: Path) -> None:
    with (
        serving(live_fleet, table_engine()),
        table_agent(live_fleet, "dev-d", tmp_path, TableDrafter(table_engine())) as agent,
    ):
        agent.wait_ready(WAIT_S)
        chat = agent.chat(SHORT)
        last(chat.send("secret"))
        shelf = Shelf(agent.config, WAIT_S)
        (row,) = shelf.sessions_here()
        with pytest.raises(ConfigError, match="open in another process"):
            shelf.remove_here([row.uid])
        assert last(chat.send("more")).tokens
        chat.close()


def test_names_must_be_exact_enough(
    live_fleet: LiveFleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(live_fleet, table_engine()):
        talk(live_fleet, tmp_path, "dev-e")
    assert run(["session", "rm", "zz", "--home", str(tmp_path)]) == 2
    assert "no conversation is named 'zz'" in capsys.readouterr().err
    assert run(["session", "rm", "--home", str(tmp_path)]) == 2
    sessions = Shelf(DeviceConfig.load(tmp_path), WAIT_S).sessions_here()
    twice = [*sessions, *sessions]
    with pytest.raises(ConfigError, match="2 conversations"):
        chosen_sessions(twice, [twice[0].uid[:4]])
