"""LightlyTrain's distillation and ours in turn, on the same photographs, students and teachers.

    python -m venv lightly && lightly/bin/pip install "lightly-train[timm]"
    OMP_NUM_THREADS=1 python -m bench.lightly --their-python lightly/bin/python
    python -m bench.lightly --their-python lightly/bin/python --case vit --source memory --precision bf16

LightlyTrain is installed apart: only the path to its Python is needed here. Its telemetry is off
(`LIGHTLY_TRAIN_EVENTS_DISABLED=1`), nothing is downloaded: teachers have random values, the same
in both.
Each is a process that trains as its users do (`bench/lightly/scripts`), and after each step of a turn
waits for the next; who waits is stopped whole, loader too, so that it can neither prepare nor disturb.
"""
