"""One model being fetched: the file on the disk, what is missing of it, and the way it comes by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from device_agent.delivery.assembly import Assembly, Store
from device_agent.delivery.https_source import HttpsBlock, HttpsEnd, HttpsSource
from device_agent.delivery.pace import Pace
from device_agent.delivery.partial_file import PartialFile
from device_agent.delivery.pull import Ask, Pull
from device_agent.delivery.stream import Fetch, Stream
from protocol.errors import ModelError
from protocol.model_block import ModelBlock
from protocol.model_manifest import ModelManifest
from protocol.model_messages import ModelRequest

MAX_WHOLE_WRONG = 2
"""Times that all chunks may be right and the file wrong; the second time its manifest contradicts itself."""


class FetchJob:
    """Fetches `manifest`'s file into `directory`; for one thread.

    Args:
        ask: publishes a request to the fleet; it may get lost.
        post: takes what comes from a web server, on any thread, and hands it to `from_server`.

    Raises:
        OSError, ModelError: as `PartialFile`.
    """

    def __init__(
        self,
        manifest: ModelManifest,
        directory: Path,
        ask: Callable[[ModelRequest], None],
        post: Callable[[HttpsBlock | HttpsEnd], None],
    ) -> None:
        self.manifest = manifest
        self._ask = ask
        self._partial = PartialFile(directory, manifest)
        self._assembly = Assembly(manifest, self._partial.present())
        self._pull: Pull | None = None
        self._stream: Stream | None = None
        self._server: HttpsSource | None = None
        if manifest.url:
            self._stream, self._server = Stream(self._assembly), HttpsSource(manifest, post)
        else:
            self._pull = Pull(self._assembly)
        self._pace = Pace()
        self._is_up = False
        self._n_whole_wrong = 0

    @property
    def n_done(self) -> int:
        """Bytes that are here and checked."""
        return self._assembly.n_done

    @property
    def is_whole(self) -> bool:
        return self._assembly.is_whole

    @property
    def transport(self) -> Literal["mqtt", "https"]:
        """What brings the file now."""
        return "mqtt" if self._pull else "https"

    @property
    def problem(self) -> str:
        """Why nothing comes at present; empty while something does."""
        if self._pull is not None:
            return self._pull.problem
        return self._stream.problem if self._stream and self._stream.is_hopeless else ""

    @property
    def wake_s(self) -> float | None:
        """When `tick` has something to do."""
        machine = self._pull or self._stream
        return machine.wake_s if machine else None

    def check_room(self) -> None:
        """Return when the rest fits on the disk; see `PartialFile.check_room`."""
        self._partial.check_room(self.n_done)

    def start(self, now_s: float, pace: Pace, *, is_up: bool) -> None:
        """Begin, or go on where the disk says."""
        self._partial.remove_others()
        self.set_pace(pace, now_s)
        self.link_changed(now_s, is_up=is_up)
        self.tick(now_s)

    def set_pace(self, pace: Pace, now_s: float) -> None:
        """Go faster or slower from now on."""
        self._pace = pace
        if self._server is not None:
            self._server.set_pace(pace)
        if self._pull is not None:
            self._perform(self._pull.set_pace(pace, now_s))

    def link_changed(self, now_s: float, *, is_up: bool) -> None:
        """The link to the broker is up or down."""
        self._is_up = is_up
        if self._pull is not None:
            self._perform(self._pull.link_changed(now_s, is_up=is_up))

    def from_fleet(self, block: ModelBlock, now_s: float) -> None:
        """A block has come over MQTT."""
        if self._pull is None or block.model != self.manifest.key:
            return
        if block.is_missing:
            self._perform(self._pull.refused(now_s))
        else:
            self._perform(self._pull.block(block.index, block.data, now_s))

    def from_server(self, event: HttpsBlock | HttpsEnd, now_s: float) -> None:
        """A block has come from a web server, or its answer has ended; that of an earlier job is ignored."""
        if self._stream is None or self._server is None or event.source is not self._server:
            return
        if isinstance(event, HttpsBlock):
            self._server.taken()
            self._perform(self._stream.block(event.index, event.data))
            return
        self._perform(self._stream.ended(event.problem, now_s, is_final=event.is_final))
        if self._stream.is_hopeless and self.manifest.is_over_mqtt:
            self._stream = None
            self._server.stop()
            self._pull = Pull(self._assembly)
            self.set_pace(self._pace, now_s)
            self.link_changed(now_s, is_up=self._is_up)

    def tick(self, now_s: float) -> None:
        """Time has passed."""
        machine = self._pull or self._stream
        if machine is not None:
            self._perform(machine.tick(now_s))

    def finish(self, target: Path) -> bool:
        """Check the whole file as it is on the disk and give it its name; False when some is to come again.

        Raises:
            ModelError: all its parts are right and it is wrong.
        """
        wrong = self._partial.wrong_chunks()
        if not wrong:
            self._partial.finish(target)
            self.stop()
            return True
        self._n_whole_wrong += 1
        if self._n_whole_wrong == MAX_WHOLE_WRONG:
            raise ModelError(
                f"{self.manifest.name} is whole and has another checksum than its manifest says",
                hint="push the model again",
            )
        self._assembly.forget(wrong)
        return False

    def stop(self) -> None:
        """Let go of everything; what is on the disk stays there."""
        if self._server is not None:
            self._server.stop()
        self._partial.close()

    def _perform(self, actions: Sequence[Ask | Store | Fetch]) -> None:
        for action in actions:
            match action:
                case Store(chunk, data):
                    self._partial.store(chunk, data)
                case Ask(blocks):
                    self._ask(ModelRequest(model=self.manifest.key, blocks=blocks))
                case Fetch(first, n_blocks) if self._server is not None:
                    self._server.fetch(first, n_blocks)
                case _:
                    pass
