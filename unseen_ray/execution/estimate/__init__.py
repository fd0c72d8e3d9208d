"""What a run takes of a cluster, worked out or measured before anything starts."""
