"""`python -m benchmarks.gpu`: posttrain's CUDA path on one GPU, without vLLM and without a network.

Each point is a module here with a function `cases`, run in a process of its own (`point`).
"""
