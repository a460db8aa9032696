# SPDX-License-Identifier: Apache-2.0
"""The daemon's log: one line of `key=value` pairs for each event, for the journal.

Under systemd each line begins with its priority (sd-daemon(3)).
"""

import os
import sys

from tapster.light import Any

ERROR, WARNING, INFO = 3, 4, 6
_NAMES = {ERROR: "error", WARNING: "warning", INFO: "info"}


class Log:
    """Writes lines to standard error."""

    def __init__(self) -> None:
        self._is_read = True
        self._journal = "JOURNAL_STREAM" in os.environ

    def __call__(self, level: int, event: str, **fields: Any) -> None:
        if not self._is_read:
            return
        start = f"<{level}>" if self._journal else f"level={_NAMES[level]} "
        words = [f"event={event}"] + [
            f"{key}={_quoted(value)}"
            for key, value in fields.items()
            if value is not None
        ]
        try:
            sys.stderr.write(start + " ".join(words) + "\n")
            sys.stderr.flush()
        except BrokenPipeError:
            self._is_read = False  # no process reads the log any more
        except OSError:
            pass  # its disk is full, say: this line is lost, and the next may not be


def _quoted(value: Any) -> str:
    text = str(value)
    plain = text.isprintable() and not set(text) & set(' ="') and text
    if plain:
        return text
    # Not with a codec: loading a codec needs a descriptor, and none may be left.
    inside = ascii(text)[1:-1].replace('"', '\\"')
    return f'"{inside}"'
