# SPDX-License-Identifier: Apache-2.0
"""Install or uninstall, for the Makefile: python -m tapster.install --prefix /usr."""

import argparse
import sys

from tapster.errors import TapsterError
from tapster.install import place


def main() -> int:
    parser = argparse.ArgumentParser(prog="make install", description=__doc__)
    parser.add_argument("action", choices=["install", "uninstall"])
    parser.add_argument("--prefix", default="/usr/local")
    parser.add_argument("--destdir", default="")
    parser.add_argument("--python", default=sys.executable)
    options = parser.parse_args()
    try:
        if options.action == "install":
            paths = place.install(options.prefix, options.destdir, options.python)
        else:
            paths = place.uninstall(options.prefix, options.destdir)
        if not options.destdir:
            place.activate(removed=options.action == "uninstall")
    except TapsterError as error:
        sys.stderr.write(f"make {options.action}: {error}\n")
        return 1
    sys.stdout.write("".join(f"{path}\n" for path in paths))
    return 0


if __name__ == "__main__":
    sys.exit(main())
