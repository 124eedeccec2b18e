"""What somebody may have meant by a name that does not exist."""

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a sentence: ``; did you mean X?`` when a known name is near, else a full stop."""
    matches = get_close_matches(name[:100], list(known), n=1)
    return f"; did you mean {matches[0]}?" if matches else "."
