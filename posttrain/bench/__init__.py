"""Benchmarks: what posttrain costs, with the machine and the commit beside every figure."""
