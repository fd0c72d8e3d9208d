"""The same choices by passes over chunks, for score tables larger than memory: the ids of `core.select`."""
