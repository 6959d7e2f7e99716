"""Brings the retained quotas in step with what the operator has decided."""

from __future__ import annotations

from collections.abc import Mapping

from fleet.operator import Operator
from protocol.codec import encode
from protocol.messages import Quota
from protocol.topics import QUOTA


def publish_quotas(operator: Operator, fleet: str, wanted: Mapping[str, Quota]) -> tuple[str, ...]:
    """Retain each device's quota, and clear those of all others; the devices for which something changed.

    Raises:
        LinkError: the snapshot did not come in time, or the broker refused.
    """
    payloads = {QUOTA.topic(fleet, d=device): encode(quota) for device, quota in wanted.items()}
    found = operator.retained([QUOTA.filter(fleet)])
    orphans = sorted(found.keys() - payloads.keys())
    changed = sorted(topic for topic, payload in payloads.items() if found.get(topic) != payload)
    for topic in changed:
        operator.retain(topic, payloads[topic])
    operator.clear(orphans)
    return tuple(names["d"] for topic in (*changed, *orphans) if (names := QUOTA.parse(topic)))
