"""Span and trace ids that leave the user's random numbers alone."""

from __future__ import annotations

import os
import random

from opentelemetry.sdk.trace.id_generator import RandomIdGenerator


class OwnIds(RandomIdGenerator):
    """Random ids from a source of our own.

    The SDK draws from the global `random`: under ``random.seed(0)`` a job would get other numbers
    with us than without, and two spans the same id.
    """

    def __init__(self) -> None:
        self._source = random.Random(os.urandom(32))
        os.register_at_fork(after_in_child=self._reseed)

    def generate_span_id(self) -> int:
        """Eight random bytes, never 0."""
        return self._source.getrandbits(64) or self.generate_span_id()

    def generate_trace_id(self) -> int:
        """Sixteen random bytes, never 0."""
        return self._source.getrandbits(128) or self.generate_trace_id()

    def _reseed(self) -> None:
        self._source.seed(os.urandom(32))
