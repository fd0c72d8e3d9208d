"""What learns: models, the training loop, prediction, and the work of one task. Needs torch, not ray."""
