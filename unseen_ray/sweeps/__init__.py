"""Sweeps over what a run does: which configurations there are, what came out of each, and what that says of the knobs."""
