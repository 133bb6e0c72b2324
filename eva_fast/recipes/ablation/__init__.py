"""The parts of `eva-fast ablate`: rows, budget, scores, report."""
