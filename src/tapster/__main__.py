# SPDX-License-Identifier: Apache-2.0
"""Start the command: `tapster`, or `python -m tapster`."""

# The module `signal` makes an enumeration of all signals: a fiftieth of a verb's time.
import _signal as signal  # type: ignore[import-not-found] # it has no stub
import gc


def command() -> None:
    """Run the command and end the process."""
    # While modules are imported there is nothing to undo. So Ctrl-C ends the process
    # without a traceback. The command takes the signal back before it opens anything.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    # To look for garbage among modules takes a sixteenth of a verb's time.
    gc.disable()
    from tapster import finder

    finder.install()
    from tapster import cli

    cli.command()


if __name__ == "__main__":
    command()
