"""What every part of SLED agrees on: topics, messages, codec, coupling, chain hash, fingerprints, the link.

The bottom layer: it imports no other package of the project. Importing it loads neither an MQTT client
nor a model library; `protocol.link` is imported by the shells that need a connection.
"""

from typing import Literal

PROTOCOL_VERSION: Literal[1] = 1
"""The version in every message and in the topic root. Messages of another version are refused."""
