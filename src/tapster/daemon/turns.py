# SPDX-License-Identifier: Apache-2.0
"""Work that is done in turns: a few pieces at a time, so that calls run in between."""

from collections import deque
from collections.abc import Callable

from tapster.light import Any

TURN = 0.01
"""Seconds after which a turn begins no further piece. A piece takes up to 10 ms."""

Piece = Callable[[], Any]


class Turns:
    """Pieces of work that wait for their turn. Used in the worker's thread."""

    def __init__(
        self, submit: Callable[[Piece], None], clock: Callable[[], float]
    ) -> None:
        """`submit` asks for a call after those that wait already."""
        self._submit = submit
        self._clock = clock
        self._pieces: deque[Piece] = deque()
        self._asked = False

    def add(self, piece: Piece) -> None:
        """Do this after the pieces that wait already."""
        self._pieces.append(piece)

    def run(self) -> None:
        """Do pieces until the turn is over, and ask for another turn for the rest."""
        end = self._clock() + TURN
        try:
            while self._pieces:
                self._pieces.popleft()()
                if self._clock() >= end:
                    break
        finally:
            if self._pieces and not self._asked:
                self._asked = True
                self._submit(self._again)

    def _again(self) -> None:
        self._asked = False
        self.run()
