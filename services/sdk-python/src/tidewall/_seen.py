"""How far a client has seen the regions. Answers say it and reads bring it along, so that no read with SESSION shows less than an earlier
answer did, whichever gateway and replica gives it."""

from __future__ import annotations

import re
import threading
from typing import Any, Dict, Iterable, Optional, Tuple

# The metadata that carries it: `{region}={incarnation}.{index}.{time}`, with commas between.
KEY = "tidewall-seen"
_PART = re.compile(r"([^=,]+)=(\d+)\.(\d+)\.(\d+)(?:\..*)?")

_Seen = Tuple[int, int, int]


def _both(one: _Seen, other: _Seen) -> _Seen:
    more, less = max(one, other), min(one, other)
    # Times of different incarnations cannot be compared.
    return more if more[0] != less[0] else (more[0], more[1], max(more[2], less[2]))


class Seen:
    """May be used by many threads; their answers come in any order."""

    def __init__(self) -> None:
        self._regions: Dict[str, _Seen] = {}
        self._lock = threading.Lock()

    def note(self, metadata: Optional[Iterable[Any]]) -> None:
        """Notes what the metadata of an answer says."""
        for key, value in metadata or ():
            if key != KEY:
                continue
            with self._lock:
                for part in value.split(","):
                    # What a later service says in other words is left out.
                    found = _PART.fullmatch(part)
                    if found:
                        region, seen = found.group(1), (int(found.group(2)), int(found.group(3)), int(found.group(4)))
                        self._regions[region] = _both(seen, self._regions.get(region, seen))

    def text(self) -> str:
        """What a read brings along; empty when nothing was seen yet."""
        with self._lock:
            return ",".join(f"{region}={a}.{b}.{c}" for region, (a, b, c) in sorted(self._regions.items()))
