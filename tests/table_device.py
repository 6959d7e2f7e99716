"""A device for tests whose models are random tables: no model file, answers in milliseconds."""

from __future__ import annotations

import random
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from device_agent.agent import DeviceAgent
from device_agent.config import Broker, DeviceConfig, Identity, Model
from device_agent.controller import ControllerOptions
from device_agent.delivery.delivery import Delivery
from device_agent.drafter import DrafterInfo
from device_agent.settings import Settings
from device_agent.tokenizer import ChatTokenizer
from edge_verifier.engines.table_engine import TableEngine
from protocol.errors import ModelError
from protocol.fingerprint import vocabulary_fingerprint
from protocol.messages import SamplerSettings
from protocol.sampler import choose
from tests.live_fleet import LiveFleet

STOP_ID = 0
USER_ID = 1
ANSWER_ID = 2
PIECES = (b"", b"", b"", b" ", "ä".encode()[:1], "ä".encode()[1:], *(bytes([97 + i]) for i in range(26)))
"""Token ids to bytes: three control tokens, a space, the two halves of a letter, a to z."""


class TableVocabulary:
    """The 32 tokens of the tables (`device_agent.vocabulary.Vocabulary`)."""

    model = "table"
    model_hash = "0" * 64
    size = len(PIECES)
    fingerprint = vocabulary_fingerprint([f"<{i}>" for i in range(len(PIECES))])
    trained_context = 4096
    chat_template = (
        "{% for message in messages %}"
        "{% if message['role'] == 'user' %}<user>{{ message['content'] }}<end><answer>"
        "{% elif message['role'] == 'assistant' %}{{ message['content'] }}<end>"
        "{% else %}{{ message['content'] }}<end>{% endif %}{% endfor %}"
    )
    bos_text = ""
    eos_text = "<end>"
    adds_bos = False
    stop_ids = frozenset({STOP_ID})
    control_tokens: Mapping[str, int] = {"<end>": STOP_ID, "<user>": USER_ID, "<answer>": ANSWER_ID}
    user_defined_tokens: frozenset[str] = frozenset()

    def encode(self, text: str) -> list[int]:
        """One token for each byte that there is one for; others become spaces."""
        return [PIECES.index(bytes([byte])) if bytes([byte]) in PIECES else 3 for byte in text.encode()]

    def piece(self, token: int) -> bytes:
        """The bytes of a token."""
        return PIECES[token]


class TableDrafter:
    """A drafter that looks into the target's own table, and errs now and then."""

    def __init__(self, engine: TableEngine, *, error_rate: float = 0.2, fingerprint: str = "") -> None:
        vocabulary = TableVocabulary()
        self.info = DrafterInfo(
            "table",
            "table",
            vocabulary.model_hash,
            vocabulary.size,
            fingerprint or vocabulary.fingerprint,
            vocabulary.trained_context,
        )
        self.is_failing = False
        self.n_drafts = 0
        self._engine = engine
        self._error_rate = error_rate
        self._chance = random.Random(1)
        self._tokens: list[int] = []

    def sync(self, tokens: Sequence[int]) -> None:
        """See `device_agent.drafter.Drafter.sync`."""
        self._tokens = [*tokens]

    def draft(self, settings: SamplerSettings, n: int, *, min_probability: float = 0.0) -> list[int]:
        """See `device_agent.drafter.Drafter.draft`."""
        del min_probability
        if self.is_failing:
            raise ModelError("the draft model broke")
        for _ in range(n):
            logits = self._engine.next_logits(self._tokens)
            token = choose(logits, settings, len(self._tokens))
            wrong = self._chance.random() < self._error_rate
            self._tokens.append((token + 1) % len(PIECES) if wrong else token)
        self.n_drafts += n
        return self._tokens[-n:]

    def close(self) -> None:
        """Nothing to free."""


def table_engine(*, seed: int = 0, max_context: int = 512) -> TableEngine:
    """A target of this vocabulary."""
    return TableEngine(
        vocab_size=len(PIECES), seed=seed, stop_ids=frozenset({STOP_ID}), max_context=max_context
    )


def table_agent(
    fleet: LiveFleet,
    device: str,
    home: Path,
    drafter: TableDrafter,
    *,
    port: int | None = None,
    takes_models: bool = False,
    **settings: Any,
) -> DeviceAgent:
    """An agent of `device`, not started; `port` is a proxy's; other keywords are its settings.

    With `takes_models` it takes what the fleet delivers.
    """
    endpoint = fleet.endpoint(device)
    tls = endpoint.tls
    assert tls is not None
    place = home / "identity"
    place.mkdir(exist_ok=True)
    for name, file in (("broker-ca", tls.ca_file), ("cert", tls.cert_file), ("key", tls.key_file)):
        shutil.copy(file, place / f"{name}.pem")
    config = DeviceConfig(
        home=home,
        identity=Identity(fleet="f", device=device),
        broker=Broker(host=endpoint.host, port=port or endpoint.port),
        model=Model(path="none.gguf"),
        settings=Settings(**{"temperature": 0.0, "max_tokens": 40, **settings}),
    )
    return DeviceAgent(
        config,
        drafter,
        ChatTokenizer(TableVocabulary()),
        controller_options=ControllerOptions(max_draft=6),
        delivery=Delivery(config) if takes_models else None,
    )
