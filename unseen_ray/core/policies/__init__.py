"""Policies, and what they share: by class, by features, by place in the order. See `core.select`."""
