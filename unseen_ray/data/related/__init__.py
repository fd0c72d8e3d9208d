"""Samples that are no two independent draws: groups, and copies."""
