"""One recipe takes a Llama-family model through judged SFT, online RL and a light DPO."""

__version__ = "0.1.0"
