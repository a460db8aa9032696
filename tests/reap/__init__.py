# SPDX-License-Identifier: Apache-2.0
"""What reaping promises, and the process that reaps by itself."""
