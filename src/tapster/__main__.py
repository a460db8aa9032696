# SPDX-License-Identifier: Apache-2.0
"""Start the command: `tapster`, or `python -m tapster`."""

import gc
import signal

from tapster.light import NoReturn


def command() -> NoReturn:
    """Run the command and end the process."""
    # While modules are imported there is nothing to undo. So Ctrl-C ends the process
    # without a traceback. The command takes the signal back before it opens anything.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    # To look for garbage among modules takes a sixteenth of a verb's time.
    gc.disable()
    from tapster import cli

    cli.command()


if __name__ == "__main__":
    command()
