# SPDX-License-Identifier: Apache-2.0
"""Suggest the word that was probably meant. Pure."""

from tapster.light import Iterable


def hint(wanted: str, known: Iterable[str]) -> str:
    """Return a question about the nearest known word, or nothing."""
    from difflib import get_close_matches  # slow to import: for errors only

    # Without dashes: two short options have these in common, and nothing else.
    words = {word.lstrip("-"): word for word in known}
    near = get_close_matches(wanted.lstrip("-"), list(words), 1)
    return f" (did you mean {words[near[0]]!r}?)" if near else ""
