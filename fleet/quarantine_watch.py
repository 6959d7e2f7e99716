"""Takes verifiers' complaints about devices that flood, and has the devices locked out.

Only a verifier can write a complaint, below its own name; the device in it is the one in the topics that it
refused, which the broker had bound to the device's certificate. So no device can complain, or be complained
of in another's place.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from protocol.codec import decode
from protocol.inbox import Inbox, InboxService
from protocol.link import Endpoint, LinkOptions, Received, Subscription
from protocol.messages import Complaint
from protocol.topics import COMPLAINT

LIFT_EVERY_S = 5.0
"""How often is looked whether a quarantine is over."""


def reason_of(complaint: Complaint, verifier: str) -> str:
    """What the operator reads."""
    kib_s = complaint.refused_bytes_s / 1024
    return f"flooded verifier {verifier}: {complaint.refused_s:,.0f} messages/s, {kib_s:,.0f} KiB/s refused"


class QuarantineWatch(InboxService):
    """Listens on a link of its own, so that nothing else that the operator's service does delays it.

    A context manager. One thread acts on complaints, in the order in which they came.

    Args:
        endpoint: the backend listener with the certificate of `identity`.
        lock_out: put this device into quarantine for this reason, unless it is in one.
        lift_ended: let in those whose time is over.

    Raises:
        LinkError: on entering: the broker cannot be reached or refuses.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        identity: str,
        fleet: str,
        lock_out: Callable[[str, str], None],
        lift_ended: Callable[[], None],
    ) -> None:
        self._lock_out = lock_out
        self._lift_ended = lift_ended
        self._look_s = time.monotonic() + LIFT_EVERY_S
        super().__init__(
            Inbox(
                endpoint,
                LinkOptions(
                    identity, keepalive_s=5, is_clean_start=True, session_expiry_s=0, longest_delay_s=1.0
                ),
                [Subscription(COMPLAINT.filter(fleet), retain_handling=2)],
                self._judge,
                on_time=self._look,
                due_s=lambda: self._look_s,
            )
        )

    def _look(self) -> None:
        self._look_s = time.monotonic() + LIFT_EVERY_S
        self._lift_ended()

    def _judge(self, event: Received) -> None:
        names = COMPLAINT.parse(event.topic)
        if names is None:
            return
        complaint = decode(Complaint, event.payload)
        self._lock_out(complaint.device, reason_of(complaint, names["v"]))
