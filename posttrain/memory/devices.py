"""How many devices there are and what one holds."""

from __future__ import annotations

import re
from dataclasses import dataclass

from posttrain.errors import RecipeError

GB = 10**9
UNITS = {"gb": GB, "gib": 2**30}


@dataclass(frozen=True, kw_only=True, slots=True)
class Devices:
    """Devices of one kind."""

    count: int
    capacity: int
    """Bytes of one."""

    def __str__(self) -> str:
        return f"{self.count} x {self.capacity / GB:g} GB"


def parse_devices(text: str) -> Devices:
    """Read `8x80gb` or `1x79.6gib`.

    GB are decimal, as on the box; a driver shows some per cent more (80 GB: about 85e9 bytes), and
    the plan leaves that to fragments of the allocator. Raises RecipeError for anything else.
    """
    match = re.fullmatch(r"(\d+)x(\d+(?:\.\d+)?)(gb|gib)", text.strip().lower())
    if match is None or int(match[1]) < 1 or float(match[2]) <= 0:
        raise RecipeError(
            f"--devices {text}: not NxMgb", hint="for example --devices 8x80gb, or 1x79.6gib"
        )
    return Devices(count=int(match[1]), capacity=int(float(match[2]) * UNITS[match[3]]))
