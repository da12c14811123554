"""The listener in the driver's JVM, seen from Python."""

from __future__ import annotations

from typing import Any


class Interrupted(Exception):
    """The thread's connection is in the middle of a call that a signal handler has left: what would
    be asked over it now waits for that call, and gets its answer."""


class InJvm:
    """A `draining.Teller`: ``listener.java``, whose methods have the same names.

    Its calls say what py4j's own would, without what those do to find out what their arguments
    are: that was a third of what an action costs its thread.
    """

    def __init__(self, listener: Any) -> None:
        self._listener = listener  # for as long as it lives here, it does in the JVM
        self._target: str = listener._target_id
        self._client = listener._gateway_client
        self.wake = listener.wake
        self.detach = listener.detach
        self.dropped = listener.dropped

    def enter(self, context: str) -> str | None:
        found: str | None = self._call("enter", context)
        return found

    def leave(self, before: str | None, context: str) -> None:
        """Raises `Interrupted` too; that connection is never used again, nor its local property."""
        # Where threads are not pinned there is none of their own.
        mine = getattr(self._client, "get_thread_connection", lambda: None)()
        if mine is not None and mine not in self._client.deque:
            raise Interrupted
        self._call("leave", before, context)

    def left(self, context: str) -> None:
        self._call("left", context)

    def drain(self, most: int, wait: int) -> str:
        """Asked all the time, so that it is the one that meets a JVM that is gone. There py4j
        writes to the root logger, which sets up logging for the whole program where that had not
        been done; here it only raises."""
        connection = self._client._get_connection()
        try:
            answer = connection.send_command(self._command("drain", most, wait))
        except BaseException:
            connection.close()
            raise
        self._client._give_back_connection(connection)
        found: str = self._value(answer, "drain")
        return found

    def _call(self, method: str, *arguments: str | None) -> Any:
        return self._value(self._client.send_command(self._command(method, *arguments)), method)

    def _command(self, method: str, *arguments: str | int | None) -> str:
        from py4j import protocol

        parts = map(protocol.get_command_part, arguments)
        head = f"{protocol.CALL_COMMAND_NAME}{self._target}\n{method}\n"
        return head + "".join(parts) + str(protocol.END_COMMAND_PART)

    def _value(self, answer: str, method: str) -> Any:
        from py4j import protocol

        return protocol.get_return_value(answer, self._client, self._target, method)
