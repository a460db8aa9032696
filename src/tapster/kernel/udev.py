# SPDX-License-Identifier: Apache-2.0
"""Whether udev may change Tapster's devices.

udev gives some new taps another MAC (MACAddressPolicy in systemd.link(5)), unless a
file of Tapster's tells it not to. It does so in its own time: some milliseconds after
the device appears, or some seconds on a busy host.
"""

import os

CONTROL, HANDS_OFF = "/run/udev/control", "systemd/network/10-tapster.link"
LIBRARIES = ("/etc", "/run", "/usr/local/lib", "/usr/lib", "/lib")
"""Where systemd looks for its files."""


def interferes() -> bool:
    """Return whether udev runs, and is not told to keep its hands off."""
    # access(2) raises no exception if there is none.
    return os.access(CONTROL, os.F_OK) and not any(
        os.access(f"{library}/{HANDS_OFF}", os.F_OK) for library in LIBRARIES
    )
