"""Benchmarks: `pytest bench/` checks that each runs, `pytest bench/ --benchmark` times all.

A subject's one set-up function gives every variant the same inputs; the variants' numbers are
compared before anything is timed, and a subject whose variants disagree fails.
"""
