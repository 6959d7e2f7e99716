"""Sessions whose texts begin alike share the work of the beginning. Pure: effects say what is copied.

A prompt is given what others hold of it. While another session is still computing what both need, the later
one follows it: it is left out of steps that the other is in, and takes its part when that is there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from edge_verifier.effects import Close, Effect, Retain, Share
from edge_verifier.engine import EngineInfo
from edge_verifier.prefixes import PREFIX_BLOCK, Holder, Prefixes, PrefixRules, shared_length
from edge_verifier.session import Session


@dataclass(frozen=True, slots=True)
class Following:
    """A session waits for the first `length` positions of another, `leader`."""

    leader: int
    length: int


class PrefixSharing:
    """What the session table shares between its sessions.

    Args:
        new_sid: gives numbers that no session has.
    """

    def __init__(self, rules: PrefixRules, info: EngineInfo, new_sid: Callable[[], int]) -> None:
        self._is_on = info.can_fork and rules.scope != "off"
        self._new_sid = new_sid
        self._follows: dict[int, Following] = {}
        self.prefixes = Prefixes(rules, info.max_positions, info.block)

    def following(self, sid: int) -> Following | None:
        """For whom a session waits."""
        return self._follows.get(sid)

    def give(self, session: Session, sessions: Iterable[Session]) -> list[Effect]:
        """Let a prompt that is about to be queued begin with what is there, or follow who computes it."""
        self._follows.pop(session.sid, None)
        if not self._is_on or session.n_prompt_left == 0 or (work := session.work()) is None:
            return []
        others = [each for each in sessions if each is not session]
        text, n_held = session.chain.tokens, work.n_cached
        holder, n = self.prefixes.best(text, session.device, (_holder(each) for each in others))
        effects: list[Effect] = []
        if holder is not None and n >= n_held + PREFIX_BLOCK:
            effects.append(Share(session.sid, holder.sid, n, n - n_held))
            n_held = n
        following = self._leader(session, others, n_held)
        if following is not None:
            self._follows[session.sid] = following
        elif holder is not None and effects:
            sharers = [session, *(each for each in others if each.sid == holder.sid)]
            is_private = not any(each.opening.keep_checkpoint for each in sharers)
            effects += self._kept(holder, list(text[:n]), is_private=is_private)
        return effects

    def released(self, leader: int, n_landed: int | None) -> list[int]:
        """Who need not wait for `leader` any more, which holds `n_landed` positions or, if None, is gone."""
        done = [
            sid
            for sid, following in self._follows.items()
            if following.leader == leader and (n_landed is None or n_landed >= following.length)
        ]
        for sid in done:
            del self._follows[sid]
        return done

    def ended(self, session: Session) -> list[Effect]:
        """A session closes: its opening may be kept for others, unless its device wants no copies kept."""
        n = self.prefixes.longest(min(session.n_opening, session.n_landed))
        tokens = session.cached[:n]
        is_private = not session.opening.keep_checkpoint
        is_like_one = self.prefixes.best(tokens, session.device, ())[1] > 0
        if not self._is_on or n == 0 or is_private or is_like_one or session.flight is not None:
            return [Close(session.sid)]
        dropped = self.prefixes.add(session.sid, tokens, session.device, is_shared=False)
        return [Retain(session.sid, n), *map(Close, dropped)]

    def forget(self, sid: int) -> None:
        """A session is gone, or waits for nobody."""
        self._follows.pop(sid, None)

    def drop(self, keeping: int | None = None) -> list[Effect]:
        """Give up one entry for its memory, if there is any."""
        sid = self.prefixes.drop(keeping)
        return [] if sid is None else [Close(sid)]

    def _leader(self, session: Session, others: Sequence[Session], n_held: int) -> Following | None:
        text, found = session.chain.tokens, None
        for each in others:
            if each.sid in self._follows or not each.is_busy:
                continue
            if not self.prefixes.may_share(each.device, session.device):
                continue
            n = shared_length(each.chain.tokens, text)
            if n >= n_held + PREFIX_BLOCK and n > each.n_landed:
                found, n_held = Following(each.sid, n), n
        return found

    def _kept(self, holder: Holder, tokens: list[int], *, is_private: bool) -> list[Effect]:
        """What two texts share is kept for a third, unless nobody of them wants copies kept."""
        if holder.sid in self.prefixes:
            length = self.prefixes.use(holder.sid, len(tokens))
            return [] if length is None else [Retain(holder.sid, length)]
        n = self.prefixes.longest(len(tokens))
        if n == 0 or is_private:
            return []
        sid = self._new_sid()
        dropped = self.prefixes.add(sid, tokens[:n], holder.device, is_shared=True, is_coming=True)
        return [*map(Close, dropped), Share(sid, holder.sid, n, 0)]


def _holder(session: Session) -> Holder:
    return Holder(session.sid, session.device, session.cached, session.n_landed)
