"""Connections that give up on clients who never finish their headers.

uvicorn limits how long a connection may idle, but a client that sends a byte of a header now and
then keeps its connection for ever.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

HEADER_BYTES = 64 * 1024


class PatientHTTPProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """uvicorn's protocol, with a time and a size limit for the headers of each request."""

    header_timeout = 10.0
    _timer: asyncio.TimerHandle | None = None
    _pending_bytes = 0

    def connection_made(self, transport: Any) -> None:
        """Start the clock: a client that connects must ask for something."""
        super().connection_made(transport)
        self._arm()

    def data_received(self, data: bytes) -> None:
        """Stop the clock once a request is whole enough to be answered, else let it run."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._disarm()
            return
        self._pending_bytes += len(data)
        if self._pending_bytes > HEADER_BYTES:
            self._give_up()
        elif self._timer is None:
            self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the clock."""
        self._disarm()
        super().connection_lost(exc)

    def _arm(self) -> None:
        self._timer = self.loop.call_later(self.header_timeout, self._give_up)

    def _disarm(self) -> None:
        self._pending_bytes = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._disarm()
        if self.transport is not None and not self.transport.is_closing():
            self.transport.close()
