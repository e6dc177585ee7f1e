"""A source whose reading kills its process for certain images: what a fault in a native decoder does."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence

from engine.images.sources.digits import Digits
from engine.images.sources.source import Place


class Crashing(Digits):
    """The digits; rows in `deadly` end the process, rows in `endless` never come back."""

    def __init__(self, deadly: Sequence[int], endless: Sequence[int] = ()) -> None:
        self.deadly, self.endless = tuple(deadly), tuple(endless)

    def __reduce__(self) -> tuple[object, ...]:
        return Crashing, (self.deadly, self.endless)

    def read(self, places: Sequence[Place]) -> Iterator[tuple[int, bytes]]:
        """As the digits, except for those rows."""
        for position, data in super().read(places):
            if places[position].row in self.deadly:
                os._exit(139)
            while places[position].row in self.endless:
                time.sleep(1)
            yield position, data
