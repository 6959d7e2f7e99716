"""A session's text on the device: committed tokens, presumed ones behind them, drafts ahead of both."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from protocol.chain import Chain
from protocol.messages import SamplerSettings


@dataclass(slots=True)
class DraftRequest:
    """A request that a drafter works on; its next token will stand at `position`, its last before `end`."""

    id: int
    position: int
    end: int


class Text:
    """The tokens of one session.

    Indices are absolute. `[0, committed)` stands for good; `[committed, len)` is presumed by windows under
    way; `ahead` follows at `len`, drafted and in no window yet. Every drafted token was chosen after all the
    tokens before it, so a token that turns out wrong voids everything behind it.
    """

    def __init__(self, settings: SamplerSettings, target: str, tokens: Sequence[int] = ()) -> None:
        self._settings = settings
        self._target = target
        self._chain = Chain(settings, target, tokens)
        self._request: DraftRequest | None = None
        self._n_requests = 0
        self._draft_s: list[float] = []
        self._exhausted_at: int | None = None
        self.committed = len(tokens)
        self.ahead: list[int] = []

    def __len__(self) -> int:
        return len(self._chain)

    @property
    def is_drafting(self) -> bool:
        """Whether a request is under way that can still be of use."""
        return self._request is not None

    @property
    def is_exhausted(self) -> bool:
        """Whether the drafter has no more to propose after what is known."""
        return self._exhausted_at == len(self) + len(self.ahead)

    @property
    def last_presumed(self) -> int | None:
        """The last token in a window under way; None when no token is presumed."""
        return self._chain.tokens[-1] if len(self) > self.committed else None

    def tokens(self, start: int = 0, end: int | None = None) -> tuple[int, ...]:
        """Committed tokens from `start` to `end`."""
        return tuple(self._chain.tokens[start : self.committed if end is None else end])

    def drafted_upon(self) -> tuple[int, ...]:
        """Everything known: committed, presumed and ahead."""
        return (*self._chain.tokens, *self.ahead)

    def known(self, start: int, end: int | None = None) -> tuple[int, ...]:
        """Committed, presumed and ahead tokens from `start` to `end`."""
        return (*self._chain.tokens, *self.ahead)[start:end]

    def hash_at(self, length: int) -> str:
        """Chain hash of the first `length` committed and presumed tokens."""
        return self._chain.hash_at(length)

    def append(self, tokens: Sequence[int]) -> None:
        """Append context tokens, which stand without a check; drafts are void."""
        self.cut(self.committed)
        self._chain.extend(tokens)
        self.committed = len(self._chain)

    def cut(self, length: int) -> None:
        """Forget everything behind the first `length` tokens, presumed and drafted ones included."""
        self._chain.truncate(length)
        self.committed = min(self.committed, length)
        self._void_drafts()

    def unpresume(self) -> None:
        """Take back what windows presume: it is drafted ahead again, in no window."""
        presumed = self._chain.tokens[self.committed :]
        self.ahead[:0] = presumed
        self._draft_s[:0] = [0.0] * len(presumed)
        self._chain.truncate(self.committed)

    def set_settings(self, settings: SamplerSettings) -> None:
        """Choose by `settings` from here on; every hash and draft changes."""
        self.cut(self.committed)
        self._settings = settings
        self._chain = Chain(settings, self._target, tuple(self._chain.tokens))

    def commit(self, tokens: Sequence[int]) -> bool:
        """Append the target's tokens at `committed`; False when a presumed one was wrong."""
        is_as_presumed = True
        for token in tokens:
            is_as_presumed &= self._commit_one(token)
        return is_as_presumed

    def start_request(self, n: int) -> int:
        """Name a new request for `n` drafts, which makes an older one void."""
        self._n_requests += 1
        position = len(self) + len(self.ahead)
        self._request = DraftRequest(self._n_requests, position, position + n)
        return self._n_requests

    def end_request(self, request: int) -> None:
        """The drafter is done with `request`; if it gave fewer tokens than asked, there are no more."""
        if self._request and self._request.id == request:
            if self._request.position < self._request.end:
                self._exhausted_at = self._request.position
            self._request = None

    def add_drafts(self, request: int, tokens: Sequence[int], seconds: float) -> None:
        """Take drafted tokens; those of a void request, or behind a wrong guess, are dropped.

        Positions that were committed in the meantime are compared, so that a guess of the bonus that came
        late but right still carries the drafts behind it.
        """
        for token in tokens:
            if self._request is None or self._request.id != request:
                return
            index = self._request.position
            self._request.position += 1
            if index >= len(self):
                self.ahead.append(token)
                self._draft_s.append(seconds / len(tokens))
            elif self._chain.tokens[index] != token:
                self._void_drafts()

    def presume(self, n: int, *, is_behind_window: bool) -> tuple[int, tuple[int, ...], float]:
        """Move drafts from ahead into a window: its base, its draft of up to `n` tokens, their draft time.

        Behind another window the first drafted token is the guess of that window's bonus: it is presumed,
        and the new window's base lies after it.
        """
        seconds = 0.0
        if is_behind_window:
            self._chain.extend(self.ahead[:1])
            seconds = sum(self._draft_s[:1])
            del self.ahead[:1], self._draft_s[:1]
        base, draft = len(self), tuple(self.ahead[:n])
        seconds += sum(self._draft_s[:n])
        self._chain.extend(draft)
        del self.ahead[:n], self._draft_s[:n]
        return base, draft, seconds

    def ends_at(self, stop_ids: Collection[int]) -> bool:
        """Whether the last drafted or presumed token is one after which nothing follows."""
        last = self.ahead[-1] if self.ahead else self.last_presumed
        return last in stop_ids

    def _commit_one(self, token: int) -> bool:
        index = self.committed
        is_right = index == len(self) or self._chain.tokens[index] == token
        if not is_right:
            self.cut(index)
        if index == len(self):
            self._meet_ahead(token)
            self._chain.extend((token,))
        self.committed += 1
        return is_right

    def _meet_ahead(self, token: int) -> None:
        """A token beyond the presumed ones: drafts ahead live on when they began with it."""
        if self.ahead and self.ahead[0] == token:
            del self.ahead[:1], self._draft_s[:1]
        elif self.ahead:
            self._void_drafts()

    def _void_drafts(self) -> None:
        self.ahead.clear()
        self._draft_s.clear()
        self._request = None
        self._exhausted_at = None
