"""The training loop of one model: batches, steps, checkpoints, predictions."""
