"""All that is measured of verifiers, part by part."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Literal

from posttrain.bench.code_batteries import bench_attacks, bench_forgeries, bench_verdicts
from posttrain.bench.maths_agreement import measure_agreement
from posttrain.bench.record import Result
from posttrain.bench.verify import verify_hung, verify_speed
from posttrain.rewards import close_workers

Part = Literal["speed", "hung", "maths", "attacks", "forgeries", "code"]


def verify_results(*, num_rounds: int, only: Part | None = None) -> Iterator[Result]:
    """Each part's result as soon as it is there."""
    parts: Mapping[Part, Callable[[], Result]] = {
        "speed": lambda: verify_speed(num_rounds=num_rounds),
        "hung": lambda: verify_hung(num_rounds=num_rounds),
        "maths": measure_agreement,
        "attacks": bench_attacks,
        "forgeries": bench_forgeries,
        "code": bench_verdicts,
    }
    for part, measure in parts.items():
        if only in (None, part):
            yield measure()
            close_workers()
