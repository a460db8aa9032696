# SPDX-License-Identifier: Apache-2.0
"""The states of a connection: one pure table.

A connection answers one request at a time. What may be read, how long a client may
take and what a lost connection undoes all follow from its state.
"""

from collections.abc import Mapping

from tapster.light import StrEnum


class ConnectionState(StrEnum):
    """What the daemon does for a connection."""

    IDLE = "idle"
    """Wait for a request."""
    WORKING = "working"
    """Work on a request, or fetch the next page of a long answer."""
    ANSWERING = "answering"
    """Send the last part of an answer."""
    WATCHING = "watching"
    """Report events until the client leaves. The client must send nothing more."""
    CLOSING = "closing"
    """Send a last error, then close."""
    CLOSED = "closed"


class ConnectionEvent(StrEnum):
    """What changes the state of a connection."""

    REQUEST = "request"
    """A whole request has been taken from the received bytes."""
    PART = "part"
    """A part of an answer is to be sent, and more will follow."""
    ANSWER = "answer"
    """The answer, or its last part, is to be sent."""
    SILENCE = "silence"
    """The request is done, and its client wants no answer."""
    SUBSCRIPTION = "subscription"
    """The client receives events from now on."""
    REJECTION = "rejection"
    """The received bytes cannot be understood, or a request is not allowed in this
    state."""
    SENT = "sent"
    """Everything has been sent."""
    LOSS = "loss"
    """The connection is closed, by either side."""


_State, _Event = ConnectionState, ConnectionEvent

TABLE: Mapping[tuple[ConnectionState, ConnectionEvent], ConnectionState] = {
    (_State.IDLE, _Event.REQUEST): _State.WORKING,
    (_State.IDLE, _Event.REJECTION): _State.CLOSING,
    (_State.WORKING, _Event.PART): _State.WORKING,
    (_State.WORKING, _Event.SENT): _State.WORKING,
    (_State.WORKING, _Event.ANSWER): _State.ANSWERING,
    (_State.WORKING, _Event.SILENCE): _State.IDLE,
    (_State.WORKING, _Event.SUBSCRIPTION): _State.WATCHING,
    (_State.WORKING, _Event.REJECTION): _State.CLOSING,
    (_State.ANSWERING, _Event.SENT): _State.IDLE,
    (_State.WATCHING, _Event.PART): _State.WATCHING,
    (_State.WATCHING, _Event.SENT): _State.WATCHING,
    (_State.WATCHING, _Event.REJECTION): _State.CLOSING,
    (_State.CLOSING, _Event.SENT): _State.CLOSED,
    **{(state, _Event.LOSS): _State.CLOSED for state in _State},
}

READING = frozenset({_State.IDLE, _State.WATCHING})
"""The states in which the daemon reads. A client that watches may only hang up."""


def after(state: ConnectionState, event: ConnectionEvent) -> ConnectionState:
    """Return the state that follows. Raises ValueError if `event` cannot happen in
    `state`."""
    if (state, event) not in TABLE:
        raise ValueError(f"{event} cannot happen to a connection that is {state}")
    return TABLE[state, event]
