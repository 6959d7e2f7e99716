"""Who looks after a site goes on looking, says once that it is lost, and leaves it alone in the end."""

from __future__ import annotations

import threading
from typing import cast

import pytest

from cli import site_watch
from cli.site import Site
from cli.site_watch import SiteWatch
from protocol.errors import BrokerError, SledError


class WatchedSite:
    """Counts how often it is looked at; lost from the third time on, when it is to be."""

    def __init__(self, *, is_lost: bool) -> None:
        self.n_checks = 0
        self.seen = threading.Event()
        self._is_lost = is_lost

    def check(self) -> None:
        self.n_checks += 1
        if self.n_checks >= 3:
            self.seen.set()
            if self._is_lost:
                raise BrokerError("the broker has ended")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site_watch, "CHECK_INTERVAL_S", 0.001)


@pytest.mark.parametrize("is_lost", [False, True])
def test_a_site_is_looked_at_until_it_is_lost_or_left(*, is_lost: bool) -> None:
    site = WatchedSite(is_lost=is_lost)
    told: list[SledError] = []
    with SiteWatch(cast("Site", site), told.append):
        assert site.seen.wait(10)
    n_checks = site.n_checks
    assert n_checks == 3 if is_lost else n_checks >= 3
    assert [str(error) for error in told] == (["the broker has ended"] if is_lost else [])
    assert not any(thread.name == "site-watch" for thread in threading.enumerate())
    assert site.n_checks == n_checks
