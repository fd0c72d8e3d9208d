"""Every file name of a sweep's folder, beside the runs of its trials."""

from __future__ import annotations

__all__ = ["BEST", "CACHE", "PAGE", "TABLE", "TRIALS", "TUNE", "record_name", "trial_folder"]

TABLE, BEST, PAGE = "sweep.parquet", "best.yaml", "sweep.html"
TRIALS = "trials"
CACHE = "work"
"""Trainings and scores that trials share."""

TUNE = "tune"
"""Ray Tune's own folder."""


def trial_folder(trial: str) -> str:
    """The folder of a trial's runs and of its record."""
    return f"{TRIALS}/{trial}"


def record_name(trial: str) -> str:
    """The record of a trial."""
    return f"{trial_folder(trial)}/trial.json"
