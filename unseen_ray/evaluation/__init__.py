"""Whether the coreset is as good as everything: trainings on it and on baselines, and their table."""
