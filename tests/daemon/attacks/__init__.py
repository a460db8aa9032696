# SPDX-License-Identifier: Apache-2.0
"""Attacks of one user on the daemon, while another user is served."""
