"""The verifiers that the fleet's retained adverts tell of, and the choice among them."""

from __future__ import annotations

import random

from device_agent.actions import Binding
from protocol.errors import LinkError, SledError, VocabularyMismatchError
from protocol.messages import MAX_DRAFT, VerifierStatus
from protocol.sampler import SAMPLER_VERSION

MUCH_DEARER = 2.0
"""A session moves at a new turn when the price is so many times another's: the move costs a prefill."""
LEAST_GAIN_MS = 0.5
"""And by so much: between idle verifiers the factor says nothing."""


class Adverts:
    """The last advert of each verifier. Pure; chance comes from `chance`."""

    def __init__(self, vocabulary: str, chance: random.Random | None = None) -> None:
        """Verifiers of another vocabulary than `vocabulary` are never chosen."""
        self._vocabulary = vocabulary
        self._chance = chance or random.Random()
        self._by_name: dict[str, VerifierStatus] = {}

    def update(self, name: str, status: VerifierStatus | None) -> bool:
        """A new advert, None when it was cleared; True when a verifier that was alive is no more."""
        before = self._by_name.get(name)
        if status is None:
            self._by_name.pop(name, None)
        else:
            self._by_name[name] = status
        is_alive = status is not None and status.is_alive
        return before is not None and before.is_alive and not is_alive

    def is_announced_anew(self, name: str, status: VerifierStatus | None) -> bool:
        """Whether `status`, not yet taken by `update`, tells that the verifier has just connected.

        It then was not alive before, or says again what it said last.
        """
        before = self._by_name.get(name)
        if status is None or before is None or not status.is_alive:
            return False
        return not before.is_alive or status == before or status.incarnation != before.incarnation

    @property
    def names(self) -> frozenset[str]:
        """Verifiers that have ever been here and were not removed, alive or not."""
        return frozenset(self._by_name)

    @property
    def alive(self) -> frozenset[str]:
        """Verifiers that say that they are alive."""
        return frozenset(name for name, status in self._by_name.items() if status.is_alive)

    def choose(self, *, preferred: str = "", target: str | None = None, avoid: str = "") -> Binding | None:
        """A verifier for a new session, or one with an equal `target` for an old one.

        `preferred` if it is there, else the better of two at random; `avoid` only when there is no other.
        """
        fitting = self._fitting(target)
        ready = [name for name, status in fitting.items() if name != avoid and not status.is_draining]
        if preferred in ready:
            return _binding(preferred, fitting[preferred])
        names = ready or sorted(fitting)
        if not names:
            return None
        two = self._chance.sample(names, min(2, len(names)))
        best = min(two, key=lambda name: self._load(fitting[name]))
        return _binding(best, fitting[best])

    @property
    def has_room(self) -> bool:
        """Whether a verifier that fits takes new sessions; one that drains keeps those that it has."""
        return any(not status.is_draining for status in self._fitting(None).values())

    def better(self, present: Binding, *, preferred: str = "") -> Binding | None:
        """A verifier to which a session of `present` should move at its new turn; None: it stays.

        It moves away from one that is gone, drains or serves another target now, and to the preferred one;
        else to a random other one that is much cheaper, but only every second time, so that not all
        sessions run to a verifier that has just joined.
        """
        fitting = self._fitting(present.target)
        here = fitting.get(present.name)
        others = {
            name: status
            for name, status in fitting.items()
            if name != present.name and not status.is_draining
        }
        if not others or (here is not None and not here.is_draining and present.name == preferred):
            return None
        if here is None or here.is_draining or preferred in others:
            return self.choose(preferred=preferred, target=present.target, avoid=present.name)
        name = self._chance.choice(sorted(others))
        other = others[name]
        is_dear = here.price > max(MUCH_DEARER * other.price, other.price + LEAST_GAIN_MS)
        is_moving = is_dear and other.n_free_sessions > 0 and self._chance.random() < 1 / 2
        return _binding(name, other) if is_moving else None

    def serves_another(self, name: str, target: str) -> bool:
        """Whether verifier `name` is there, with another target than `target`."""
        status = self._by_name.get(name)
        return status is not None and status.is_alive and status.target not in (None, target)

    def _fitting(self, target: str | None) -> dict[str, VerifierStatus]:
        return {
            name: status
            for name, status in self._by_name.items()
            if status.is_alive
            and status.vocabulary == self._vocabulary
            and status.target is not None
            and not _is_other_version(status)
            and (target is None or status.target == target)
        }

    def problem(self, model: str) -> SledError:
        """Why `choose` finds no verifier, or none that has room; `model` is the draft model's name."""
        for name, status in sorted(self._by_name.items()):
            if status.is_alive and _is_other_version(status):
                return LinkError(
                    f"verifier {name} chooses tokens by version {status.sampler_version} of the sampler,"
                    f" this device by version {SAMPLER_VERSION}",
                    is_retryable=False,
                    hint="update the older side",
                )
            if status.is_alive and status.vocabulary is not None and status.vocabulary != self._vocabulary:
                return VocabularyMismatchError(
                    draft=model,
                    target=status.model or "without a name",
                    draft_vocabulary=self._vocabulary,
                    target_vocabulary=status.vocabulary,
                )
        if draining := ", ".join(sorted(self._fitting(None))):
            return LinkError(
                f"every verifier is going out of service and takes no new conversation: {draining}",
                hint="start another, or have one serve again: sled verifier drain NAME --off",
            )
        return LinkError("the broker is there, but no verifier is", hint="start one: sled verifier run")

    @property
    def is_mismatched(self) -> bool:
        """Whether there are verifiers, none of which shares the vocabulary."""
        return self.choose() is None and isinstance(self.problem(""), VocabularyMismatchError)

    @staticmethod
    def _load(status: VerifierStatus) -> tuple[bool, float, int]:
        return status.n_free_sessions == 0, status.price, -status.n_free_sessions


def _is_other_version(status: VerifierStatus) -> bool:
    """Whether a session could not be opened there; 0 says nothing."""
    return status.sampler_version not in (0, SAMPLER_VERSION)


def _binding(name: str, status: VerifierStatus) -> Binding:
    return Binding(name, status.target or "", status.max_context, min(status.max_draft, MAX_DRAFT))
