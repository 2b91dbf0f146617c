"""LoRA on Llama 4's routed experts against five other ways to train: time, memory, errors."""
