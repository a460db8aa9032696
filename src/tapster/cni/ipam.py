# SPDX-License-Identifier: Apache-2.0
"""IPAM plugins: programs to which the plugin delegates addresses, such as host-local.

Section 4 of the specification: the plugin runs them with its own environment and
configuration.
"""

import json
import os
from collections.abc import Mapping
from contextlib import suppress

from tapster.cni.protocol import (
    SINCE,
    VERSIONS,
    Attachment,
    CniCall,
    CniFailure,
    Code,
    wrong_part,
)
from tapster.light import Any


class Ipam:
    """An IPAM plugin."""

    def __init__(
        self, plugin: str, call: CniCall, configuration: Mapping[str, Any]
    ) -> None:
        """Find the program. Raises CniFailure."""
        self._call = call
        self._configuration = configuration
        for folder in call.path:
            self._program = os.path.join(folder, plugin)
            if os.access(self._program, os.X_OK):
                return
        raise CniFailure(
            Code.IPAM,
            f"there is no IPAM plugin {plugin!r} in CNI_PATH {':'.join(call.path)!r}",
        )

    def run(
        self, command: str, attachment: Attachment | None = None
    ) -> dict[str, Any] | None:
        """Run a command, for another attachment than the call's if one is given.

        Return the result. None: the plugin is for a version of the specification that
        has no such command. Raises CniFailure.
        """
        version = str(self._configuration["cniVersion"])
        if command in SINCE and SINCE[command] not in self._versions():
            return None
        for attempt in VERSIONS[VERSIONS.index(version) :: -1]:
            status, output = self._execute(command, attachment, attempt)
            answer = _decode(output)
            if not status:
                if command == "ADD":
                    self._check_result(answer)
                return answer
            code = answer.get("code")
            if code == Code.VERSION:
                continue  # the plugin is older than the configuration
            message = answer.get("msg") or output.decode(errors="replace").strip()
            raise CniFailure(
                code if isinstance(code, int) and code else Code.IPAM,
                f"{self._program}: {message or f'exit status {status}'}",
                str(answer.get("details", "")),
            )
        raise CniFailure(
            Code.VERSION, f"{self._program} supports none of {', '.join(VERSIONS)}"
        )

    def _check_result(self, answer: Mapping[str, Any]) -> None:
        """Raise CniFailure if an answer to ADD has no addresses, or has something in
        another form than the specification's."""
        if not answer.get("ips"):
            raise CniFailure(Code.IPAM, f"{self._program} gave no address")
        if problem := wrong_part(answer):
            raise CniFailure(Code.IPAM, f"{self._program}: its result's {problem}")

    def _versions(self) -> list[Any]:
        """Return the versions of the specification that the plugin speaks."""
        _, output = self._execute("VERSION", None, VERSIONS[0])
        versions = _decode(output).get("supportedVersions")
        return versions if isinstance(versions, list) else []

    def _execute(
        self, command: str, attachment: Attachment | None, version: str
    ) -> tuple[int, bytes]:
        """Run the program; return its exit status and what it printed."""
        environment = {**os.environ, "CNI_COMMAND": command}
        if attachment is not None:
            environment |= {
                "CNI_CONTAINERID": attachment.container,
                "CNI_IFNAME": attachment.ifname,
                "CNI_NETNS": "",
            }
        text = json.dumps({**self._configuration, "cniVersion": version})
        try:
            given = os.memfd_create("configuration")
            try:
                os.write(given, text.encode())
                os.lseek(given, 0, os.SEEK_SET)
                return self._spawn(environment, given)
            finally:
                os.close(given)
        except OSError as error:
            raise CniFailure(
                Code.IPAM, f"running {self._program}: {error.strerror}"
            ) from error

    def _spawn(self, environment: Mapping[str, str], given: int) -> tuple[int, bytes]:
        readable, writable = os.pipe()
        try:
            pid = os.posix_spawn(
                self._program,
                [self._program],
                environment,
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, given, 0),
                    (os.POSIX_SPAWN_DUP2, writable, 1),
                ],
            )
        except BaseException:
            os.close(readable)
            raise
        finally:
            os.close(writable)
        with open(readable, "rb") as stream:
            output = stream.read()
        _, status = os.waitpid(pid, 0)
        return os.waitstatus_to_exitcode(status), output


def _decode(output: bytes) -> dict[str, Any]:
    with suppress(ValueError, RecursionError):
        answer = json.loads(output)
        if isinstance(answer, dict):
            return answer
    return {}
