# SPDX-License-Identifier: Apache-2.0
"""Run every measurement. Needs root."""

from bench import picking

if __name__ == "__main__":
    picking.main()
