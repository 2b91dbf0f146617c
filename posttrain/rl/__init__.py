"""Stage 2: online RL on `trl.GRPOTrainer`, prompts from a curriculum, rollouts from an engine."""

from posttrain.rl.session import RlInputs
from posttrain.rl.train import train

__all__ = ["RlInputs", "train"]
