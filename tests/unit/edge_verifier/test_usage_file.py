"""The day's use over restarts: counted on, aged by the time between, never an obstacle to serving."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_verifier.quota import Quota, Quotas
from edge_verifier.usage_file import UsageFile

DAY_S = 86_400.0


def life(file: Path, *, clock_s: float, wall_s: float) -> tuple[Quotas, UsageFile]:
    quotas = Quotas(Quota(tokens_day=100))
    return quotas, UsageFile(file, quotas, lambda: clock_s, lambda: wall_s)


def used(quotas: Quotas, now_s: float) -> int:
    return sum(amount for each in quotas.usage(now_s) for _, amount in each.tokens)


@pytest.mark.parametrize(
    ("away_s", "left"), [(10.0, 100), (DAY_S / 2, 100), (DAY_S + 1000, 0), (-5000.0, 100)]
)
def test_use_is_counted_on_and_aged_by_the_wall_clock(tmp_path: Path, away_s: float, left: int) -> None:
    """A clock that went back makes nothing older."""
    before, file = life(tmp_path / "v" / "usage.json", clock_s=7.0, wall_s=1e9)
    before.spend_tokens("pi", 100, 7.0)
    file.save()
    after, file = life(tmp_path / "v" / "usage.json", clock_s=500.0, wall_s=1e9 + away_s)
    file.load()
    assert used(after, 500.0) == left
    assert (after.tokens_excess("pi", 1, 500.0) is None) == (left == 0)


def test_start_and_stop_keep_it(tmp_path: Path) -> None:
    before, file = life(tmp_path / "usage.json", clock_s=7.0, wall_s=1e9)
    file.start()
    before.spend_tokens("pi", 60, 7.0)
    file.stop()
    after, file = life(tmp_path / "usage.json", clock_s=1.0, wall_s=1e9)
    file.start()
    file.stop()
    assert used(after, 1.0) == 60


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"saved_at":1}', b'{"saved_at":1,"devices":{"a":{}}}']
)
def test_a_damaged_file_counts_nothing_and_is_replaced(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "usage.json"
    path.write_bytes(content)
    quotas, file = life(path, clock_s=7.0, wall_s=1e9)
    file.load()
    assert used(quotas, 7.0) == 0
    quotas.spend_tokens("pi", 5, 7.0)
    file.save()
    again, file = life(path, clock_s=7.0, wall_s=1e9)
    file.load()
    assert used(again, 7.0) == 5


def test_a_folder_that_cannot_be_written_is_no_obstacle(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    _, file = life(tmp_path / "file" / "usage.json", clock_s=7.0, wall_s=1e9)
    file.save()
    file.save()
    assert len([record for record in caplog.records if "not kept" in record.message]) == 1
