"""Brings the draft model that the fleet wants onto this device, on a thread of its own, and puts it to use.

    delivery = Delivery(config)
    link.subscribe(delivery.subscriptions())
    delivery.start(link)                      # before link.start()
    delivery.feed(event)                      # every event of the link, on its thread; True: it is ours alone
    delivery.hold_back(is_answering=...)     # somebody waits for an answer

An offer is taken up when the fleet has signed it and its revision is higher than any before. The file is
fetched, checked, tried out in a process of its own, and becomes the model in use when a verifier speaks its
vocabulary. Running conversations keep the draft that they began with: `switched` is set, and who owns the
agent starts it anew when it suits.
"""

from __future__ import annotations

import errno
import logging
import queue
import threading
import time
from collections.abc import Callable

from device_agent.config import DeviceConfig
from device_agent.delivery import desk
from device_agent.delivery.desk import DeliveryDesk
from device_agent.delivery.https_source import HttpsBlock, HttpsEnd
from device_agent.delivery.pace import Pace
from device_agent.delivery.slots import store_of
from device_agent.delivery.status_board import StatusBoard
from protocol.codec import encode
from protocol.errors import LinkError, MessageError, ModelError
from protocol.link import Connected, Disconnected, Link, LinkEvent, Received, Subscription
from protocol.model_block import ModelBlock
from protocol.model_messages import ModelRequest, ModelStatus
from protocol.topics import MODEL_BLOCK, MODEL_OFFER, MODEL_REQUEST, MODEL_STATUS, VERIFIER_STATUS

_logger = logging.getLogger(__name__)

RETRY_S = 600.0
MAX_WAITING = 256
"""Events that may wait; blocks beyond it are dropped, as if the network had lost them."""
_LONGEST_WAIT_S = 5.0

_Event = LinkEvent | HttpsBlock | HttpsEnd | None


class Delivery:
    """One device's delivery.

    Args:
        on_status: told of each change and of progress, on the delivery's thread; it must be quick.

    Attributes:
        offered: set once an offer has been looked at.
        switched: set when another model is in use than when this was made.
    """

    def __init__(
        self, config: DeviceConfig, *, on_status: Callable[[ModelStatus], None] = lambda _: None
    ) -> None:
        self._fleet, self._device = config.identity.fleet, config.identity.device
        self._offer_topic = MODEL_OFFER.topic(self._fleet, d=self._device)
        self._block_topic = MODEL_BLOCK.topic(self._fleet, d=self._device)
        self._limit_kib_per_s: Callable[[], int] = lambda: 0
        self._events: queue.SimpleQueue[_Event] = queue.SimpleQueue()
        self._is_stopping = threading.Event()
        self._link: Link | None = None
        self._is_answering = False
        self.offered = threading.Event()
        self.switched = threading.Event()
        self._store = store_of(config)
        self._board = StatusBoard(self._store, self._publish, on_status, time.monotonic)
        self._desk = DeliveryDesk(
            config,
            self._store,
            self._board,
            ask=self._ask,
            post=self._events.put,
            is_stopping=self._is_stopping,
            on_switched=self.switched.set,
        )
        self._thread = threading.Thread(target=self._run, name="delivery", daemon=True)

    # ---- for the owner's threads

    def subscriptions(self) -> tuple[Subscription, ...]:
        """What the link is to be subscribed to, beside the adverts of verifiers, which are looked at."""
        return Subscription(self._offer_topic), Subscription(self._block_topic, qos=0)

    def start(self, link: Link, limit_kib_per_s: Callable[[], int] = lambda: 0) -> None:
        """Work from now on.

        Args:
            limit_kib_per_s: the setting in force; 0 is no limit.
        """
        self._link, self._limit_kib_per_s = link, limit_kib_per_s
        self._thread.start()

    def feed(self, event: LinkEvent) -> bool:
        """Enqueue what concerns deliveries; True when it concerns nothing else."""
        if isinstance(event, Connected | Disconnected):
            self._events.put(event)
            return False
        if not isinstance(event, Received):
            return False
        is_block = event.topic == self._block_topic
        is_ours = is_block or event.topic == self._offer_topic
        is_dropped = is_block and self._events.qsize() >= MAX_WAITING
        if not is_dropped and (is_ours or VERIFIER_STATUS.parse(event.topic)):
            self._events.put(event)
        return is_ours

    def hold_back(self, *, is_answering: bool) -> None:
        """Say whether somebody waits for an answer on this link."""
        self._is_answering = is_answering

    def stop(self) -> None:
        """Let go; what is on the disk is gone on with the next time."""
        self._is_stopping.set()
        self._events.put(None)
        if self._thread.ident is not None:
            self._thread.join()

    # ---- the delivery's thread

    def _run(self) -> None:
        if (last := self._store.load().status) is not None:
            self._board.tell(last)
        while not self._is_stopping.is_set():
            try:
                event = self._events.get(timeout=self._wait_s())
            except queue.Empty:
                event = None
            self._guarded(event)
        self._desk.stop()

    def _guarded(self, event: _Event) -> None:
        """A fault ends the job under way, to be begun again later, and nothing else."""
        try:
            self._desk.set_pace(Pace(1024 * self._limit_kib_per_s(), self._is_answering))
            self._handle(event)
            self._desk.tick()
        except MessageError as error:
            _logger.warning("message of a delivery ignored: %s", error)
        except ModelError as error:
            self._desk.give_up("failed", f"{error}; {error.hint}" if error.hint else str(error), RETRY_S)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                self._desk.give_up("waiting", "the disk is full", desk.ROOM_RETRY_S)
            else:
                self._desk.give_up("failed", f"the disk cannot be used: {error.strerror or error}", RETRY_S)
        except Exception:
            _logger.exception("delivery to device %s", self._device)
            self._desk.give_up("failed", "an internal fault; see the device's log", RETRY_S)

    def _wait_s(self) -> float:
        wake_s = self._desk.wake_s
        if wake_s is None:
            return _LONGEST_WAIT_S
        return min(_LONGEST_WAIT_S, max(0.0, wake_s - time.monotonic()))

    def _handle(self, event: _Event) -> None:
        match event:
            case Received(topic, payload) if topic == self._offer_topic:
                self._spare_the_link()
                try:
                    self._desk.offered(payload)
                finally:
                    self.offered.set()
            case Received(topic, payload) if (names := VERIFIER_STATUS.parse(topic)) is not None:
                self._desk.advertised(names["v"], payload)
            case Received(_, payload):
                self._desk.from_fleet(ModelBlock.decode(payload))
            case HttpsBlock() | HttpsEnd():
                self._desk.from_server(event)
            case Connected() | Disconnected():
                self._desk.link_changed(is_up=isinstance(event, Connected))
            case _:
                pass

    def _spare_the_link(self) -> None:
        """An offer is long: once it is here, a reconnect to the same session at the broker brings no copy."""
        if self._link is not None and not self.offered.is_set():
            self._link.subscribe([Subscription(self._offer_topic, retain_handling=1)])

    def _ask(self, request: ModelRequest) -> None:
        if self._link is None:
            return
        try:
            topic = MODEL_REQUEST.topic(self._fleet, d=self._device)
            self._link.publish(topic, encode(request), qos=0)
        except LinkError as error:
            _logger.info("request for a model's blocks not sent: %s", error)

    def _publish(self, status: ModelStatus) -> None:
        if self._link is not None:
            self._link.retain(MODEL_STATUS.topic(self._fleet, d=self._device), encode(status))
