# SPDX-License-Identifier: Apache-2.0
"""tapster-cni: the plugin as container runtimes start it.

The result or the error is printed as JSON; the exit status is 0 or 1.
"""

import gc
import json
import os
import sys

from tapster.cni import config, protocol, verbs
from tapster.cni.protocol import CniFailure, Code
from tapster.errors import TapsterError, unforeseen
from tapster.kernel import signals
from tapster.light import Any, NoReturn

MAX_INPUT = 1 << 20


def main() -> int:
    """Carry out the command in the environment; return the exit status."""
    configuration: object = None
    try:
        call = protocol.read_call(os.environ)
        text = _read()
        if call.command == "VERSION":
            asked = protocol.read_configuration(text) if text.strip() else {}
            _print(verbs.version(asked.get("cniVersion")))
            return 0
        configuration = protocol.read_configuration(text)
        version = protocol.check_version(call, configuration)
        network = config.read_network(call, configuration, version)
        try:
            answer = verbs.VERBS[call.command](call, network, configuration)
        except TapsterError as error:
            raise verbs.failure_of(error, call) from error
        if answer is not None:
            _print(answer)
        return 0
    except CniFailure as error:
        notes = "; ".join(getattr(error, "__notes__", ()))
        error.details = "; ".join(filter(None, [error.details, notes]))
        _print(error.to_json(protocol.version_to_answer_in(configuration)))
    except Exception as error:
        if os.environ.get("TAPSTER_DEBUG"):
            raise
        failure = CniFailure(Code.INTERNAL, str(unforeseen(error)))
        _print(failure.to_json(protocol.version_to_answer_in(configuration)))
    return 1


def _read() -> bytes:
    """Read the configuration. Raises CniFailure."""
    if sys.stdin is None:  # Python's way to say that the descriptor is closed
        raise CniFailure(
            Code.IO, "standard input is closed: give it the network configuration"
        )
    try:
        text = sys.stdin.buffer.read(MAX_INPUT + 1)
    except OSError as error:
        raise CniFailure(
            Code.IO, f"reading the configuration on standard input: {error.strerror}"
        ) from error
    if len(text) > MAX_INPUT:
        raise CniFailure(
            Code.DECODING,
            f"the configuration on standard input has more than {MAX_INPUT} bytes",
        )
    return text


def _print(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")


def command() -> NoReturn:
    """Carry out the command and end the process at once."""
    if sys.stdout is None:  # closed: no runtime could learn what has been made
        sys.exit("tapster-cni: standard output is closed: the result is written to it")
    gc.disable()  # the process ends before there is much of it
    signals.keep_statuses()  # of the IPAM plugin
    status = main()
    try:
        sys.stdout.flush()
    except OSError:
        status = 1  # the runtime does not listen
    os._exit(status)


if __name__ == "__main__":
    command()
