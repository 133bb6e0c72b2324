"""Batches out of a source and a list of fields: order, workers, shared memory, copies to a GPU."""
