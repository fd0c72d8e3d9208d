"""Sets of samples: who takes part, sets of ids as values, and the coreset."""
