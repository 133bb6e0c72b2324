"""How good features are: k-NN and linear probes beside random init, pixels and the teacher."""

from eva_fast.evaluation.evaluator import evaluate
from eva_fast.evaluation.probes import PROBES, knn_accuracy, linear_accuracy
from eva_fast.evaluation.table import print_table

__all__ = ["PROBES", "evaluate", "knn_accuracy", "linear_accuracy", "print_table"]
