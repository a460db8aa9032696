# SPDX-License-Identifier: Apache-2.0
"""`python -m tapster.cli` is `tapster`."""

import sys

from tapster.cli import main

sys.exit(main())
