# SPDX-License-Identifier: Apache-2.0
"""The daemon's log: one line of `key=value` pairs for each event, for the journal.

Under systemd each line begins with its priority (sd-daemon(3)).
"""

import os
import sys

from tapster.light import Any

ERROR, WARNING, INFO, DEBUG = 3, 4, 6, 7
_NAMES = {ERROR: "error", WARNING: "warning", INFO: "info", DEBUG: "debug"}


class Log:
    """Writes lines of at least one level to standard error."""

    def __init__(self, level: int = INFO) -> None:
        self._level = level
        self._journal = "JOURNAL_STREAM" in os.environ

    def __call__(self, level: int, event: str, **fields: Any) -> None:
        if level > self._level:
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
            self._level = -1  # no process reads the log any more
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
