"""Benchmark beds, which measure posttrain itself; not shipped. Run: `python -m benchmarks.NAME`.

What measures a user's own machine or run ships as `posttrain bench`.
"""
