"""The listener in the driver's JVM, seen from Python."""

from __future__ import annotations

from typing import Any


class Interrupted(Exception):
    """The thread's connection is in the middle of a call that a signal handler has left: what would
    be asked over it now waits for that call, and gets its answer."""


class InJvm:
    """A `draining.Teller`: ``listener.java``, whose methods have the same names."""

    def __init__(self, listener: Any) -> None:
        self._listener = listener
        self.enter = listener.enter
        self.left = listener.left
        self.wake = listener.wake
        self.detach = listener.detach
        self.dropped = listener.dropped

    def leave(self, before: str | None, context: str) -> None:
        """Raises `Interrupted` too; that connection is never used again, nor its local property."""
        client = self._listener._gateway_client
        # Where threads are not pinned there is none of their own.
        mine = getattr(client, "get_thread_connection", lambda: None)()
        if mine is not None and mine not in client.deque:
            raise Interrupted
        self._listener.leave(before, context)

    def drain(self, most: int, wait: int) -> str:
        """Asked all the time, so that it is the one that meets a JVM that is gone. There py4j
        writes to the root logger, which sets up logging for the whole program where that had not
        been done; here it only raises."""
        from py4j import protocol

        target, client = self._listener._target_id, self._listener._gateway_client
        command = (
            f"{protocol.CALL_COMMAND_NAME}{target}\ndrain\n"
            f"{protocol.get_command_part(most)}{protocol.get_command_part(wait)}"
            f"{protocol.END_COMMAND_PART}"
        )
        connection = client._get_connection()
        try:
            answer = connection.send_command(command)
        except BaseException:
            connection.close()
            raise
        client._give_back_connection(connection)
        found: str = protocol.get_return_value(answer, client, target, "drain")
        return found
