"""Everything a machine can tell about eva_fast, in one command and in a given time.

    eva-fast bench run --budget 600 --out results      in a checkout
    pytest bench/ --benchmark --budget 600             the same
    python -m bench.session --budget 600               the same, of a checkout that is not installed

Stages run in the order of their value, each in a process of its own with a time limit, so that one
that fails, hangs or is killed costs only itself. What is found is a line of `results.jsonl` at once;
`results.json`, `results.md` and the plots are made again after every stage. Without a GPU the same
code runs at micro sizes: that tries the command, and measures nothing of interest.
"""
