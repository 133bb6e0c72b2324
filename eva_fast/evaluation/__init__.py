"""How good features are: k-NN and linear probes beside random init, pixels and the teacher."""

from eva_fast.evaluation.evaluator import evaluate
from eva_fast.evaluation.probes import PROBES, knn_accuracy, linear_accuracy
from eva_fast.evaluation.result import Evaluation, Scores

__all__ = ["PROBES", "Evaluation", "Scores", "evaluate", "knn_accuracy", "linear_accuracy"]
