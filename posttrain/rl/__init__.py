"""Stage 2: online RL on `trl.GRPOTrainer`, its prompts from a curriculum, its rollouts from an engine."""

from posttrain.rl.train import train

__all__ = ["train"]
