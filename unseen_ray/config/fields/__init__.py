"""The fields of a run as keywords: their types, how they are given, and their description."""
