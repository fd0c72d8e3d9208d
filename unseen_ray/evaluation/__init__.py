"""Is the coreset as good as the full set? Trainings on both and on baselines, and their table."""
