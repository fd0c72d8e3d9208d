"""A run's folder on storage: its files, its manifest, and what workers leave in it."""
