"""JSON arrays in messages."""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import Field, Strict

_ItemT = TypeVar("_ItemT")

JsonList = Annotated[tuple[_ItemT, ...], Field(fail_fast=True), Strict(strict=False)]
"""A tuple that is an array on the wire, which strict models would refuse. Read up to its first bad item: an
error object for each item of a large one would hold its reader up."""
