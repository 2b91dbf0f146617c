"""Run directory, stage order, caching, resume, one process per stage."""

from posttrain.pipeline.launch import (
    Launcher,
    StageCrash,
    read_progress,
    run_in_child,
    run_in_process,
    shown_launch_line,
)
from posttrain.pipeline.planning import PlannedStage, plan
from posttrain.pipeline.running import Finished, run
from posttrain.pipeline.stage import Stage
from posttrain.pipeline.stages import STAGES, stages_of
from posttrain.pipeline.work import holder_of

__all__ = [
    "STAGES",
    "Finished",
    "Launcher",
    "PlannedStage",
    "Stage",
    "StageCrash",
    "holder_of",
    "plan",
    "read_progress",
    "run",
    "run_in_child",
    "run_in_process",
    "shown_launch_line",
    "stages_of",
]
