"""The example of docs/extending-drafters.md works as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from device_agent.drafters import load_vocabulary
from protocol.errors import ModelError
from protocol.messages import SamplerSettings
from tests.tiny_models import TinyPair

PAGE = Path(__file__).parents[3] / "docs" / "extending-drafters.md"


def test_the_example_keeps_the_contract(tiny_pair: TinyPair) -> None:
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert code is not None
    names: dict[str, Any] = {}
    exec(code[1], names)  # noqa: S102 -- our own page
    vocabulary = load_vocabulary(tiny_pair.draft)
    phrase = vocabulary.encode("The lamp in the kitchen")
    drafter = names["PhraseDrafter"](vocabulary, "The lamp in the kitchen")
    drafter.sync([9, *phrase[:2]])
    assert drafter.draft(SamplerSettings(), 2) == phrase[2:4]
    assert drafter.draft(SamplerSettings(), 99) == phrase[4:]
    assert drafter.draft(SamplerSettings(), 99) == []
    with pytest.raises(ModelError, match="token 320"):
        drafter.sync([320])
    drafter.close()
