"""Other people's command lines, taken as they are and run by eva_fast.

`python -m eva_fast.compat.run_eva_pretraining` takes those of EVA-01's own pre-training script.
"""
