"""Estimates what a run takes on a cluster before anything starts, from given or measured rates."""
