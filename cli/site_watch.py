"""Looks after a site while the program's own thread talks to its user."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from cli.site import CHECK_INTERVAL_S, Site
from protocol.errors import SledError


class SiteWatch:
    """Starts a crashed broker or verifier again, for as long as a `with` block inside the site's lasts.

    Args:
        failed: told once, on the watch's thread, when broker or verifier has ended for good.
    """

    def __init__(self, site: Site, failed: Callable[[SledError], object]) -> None:
        self._site = site
        self._failed = failed
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="site-watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._is_over.wait(CHECK_INTERVAL_S):
            try:
                self._site.check()
            except SledError as error:
                self._failed(error)
                return
