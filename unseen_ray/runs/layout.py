"""Every file name of a run's folder, and which names belong to a run.

A file whose name has numbers is a template here. The functions fill it in, and the patterns that recognise a run's files are made
of the same templates, so that no name can be written and then not be recognised.
"""

from __future__ import annotations

import re
import string

from unseen_ray.storage.lock import LOCK

__all__ = [
    "CHECKPOINTS",
    "CORESET",
    "EVALUATION",
    "FEATURES",
    "FITTING",
    "KEYS",
    "LOCK",
    "MANIFEST",
    "MANIFEST_COPY",
    "OVERWRITTEN",
    "PIXELS",
    "RAY_TRAIN",
    "REPORT",
    "SELECTIONS",
    "TENSORBOARD",
    "UNFINISHED",
    "WANDB",
    "checkpoint_file",
    "fit_folder",
    "is_fit_folder",
    "is_ours",
    "is_result",
    "is_temporary",
    "pixel_folder",
    "probs_beside",
    "probs_file",
    "scores_file",
    "selection_folder",
    "stage_coreset",
    "tensors_file",
    "top_of",
    "user_fit_folder",
    "vote_file",
    "votes_folder",
]

MANIFEST, MANIFEST_COPY = "manifest.json", "manifest.copy.json"
CORESET, KEYS = "coreset.parquet", "keys.parquet"
EVALUATION, REPORT = "evaluation.json", "report.html"
FEATURES = "stage-00/features.npy"
"""The features of all samples, in the row order of the scores of stage 0."""

CHECKPOINTS, PIXELS = "checkpoints", "pixels"
TENSORBOARD, WANDB = "tensorboard", "wandb"
RAY_TRAIN = "ray-train"
"""Ray Train's own folder, within the checkpoints."""

FITTING, SELECTIONS = "fitting", "selections"
"""Runs within a run, made by its evaluation: its configuration with `mode: fitting`, and with other seeds."""

_STAGE = "stage-{stage:02d}"
_VOTES = f"{_STAGE}/votes"
_VOTE, _VOTE_PROBS = f"{_VOTES}/{{index:02d}}.parquet", f"{_VOTES}/{{index:02d}}.probs.npy"
_SCORES, _STAGE_CORESET = f"{_STAGE}/scores.parquet", f"{_STAGE}/coreset.parquet"
_PROBS, _FEATURES = f"{_STAGE}/probs.npy", f"{_STAGE}/features.npy"
_FIT, _USER_FIT = f"{CHECKPOINTS}/{{fit}}", f"{CHECKPOINTS}/own-{{fit}}"
_CHECKPOINT = f"{_FIT}/checkpoint.json"
_TENSORS = f"{_FIT}/epoch-{{epoch:05d}}-{{writer}}-{{number:03d}}.safetensors"
_SELECTION = f"{SELECTIONS}/{{index:02d}}"

# Written by others within a run's folder: data.images.pixel_files, a user's fit, Ray Train, tensorboardX, wandb.
_PIXEL_FOLDER = "{source}-{size_px}px"
_PIXEL_FILES = f"{PIXELS}/{_PIXEL_FOLDER}/{{index:05d}}{{pixel_kind}}"
_FOREIGN = (
    f"{_USER_FIT}/{{any}}",
    f"{CHECKPOINTS}/{RAY_TRAIN}/{{any}}",
    f"{TENSORBOARD}/{{folders}}events.out.tfevents.{{name}}",
    f"{WANDB}/{{any}}",
)

_FIELDS = {
    "fit": "[0-9a-f]{32}",
    "writer": "[0-9a-f]{8}",
    "source": "[0-9a-f]{16}",
    "pixel_kind": r"\.(pixels|json)",
    "any": ".*",
    "folders": "([^/]+/)+",
    "name": "[^/]*",
}
"""Patterns of the templates' fields; digits for all others."""


def _pattern_of(template: str) -> str:
    """The regular expression for all names that a template may become."""
    parts = string.Formatter().parse(template)
    return "".join(re.escape(text) + (_FIELDS.get(field, r"\d+") if field else "") for text, field, *_ in parts)


def _any_of(*patterns: str) -> str:
    return f"({'|'.join(patterns)})"


_TABLES = _any_of(*map(_pattern_of, (CORESET, KEYS, _SCORES, _STAGE_CORESET))) + r"(/part-\d{5}(-marked)?\.parquet)?"
_VOTES_OF_TASK = (
    _pattern_of(_VOTE) + r"(/part-\d{5}\.parquet)?",
    _pattern_of(_VOTE_PROBS) + r"(/part-\d{5}\.npy)?",
)
_RESULT = _any_of(_TABLES, *_VOTES_OF_TASK, *map(_pattern_of, (_PROBS, _FEATURES)))
_BESIDE = map(
    _pattern_of, (MANIFEST, MANIFEST_COPY, LOCK, EVALUATION, REPORT, _CHECKPOINT, _TENSORS, _PIXEL_FILES, *_FOREIGN)
)
_TEMPORARY = r"\.[0-9a-f]{8}\.tmp"  # of `Folder.write`, before the file is put in place

# Evaluations make runs within a run, to any depth, and a killed writer leaves a temporary file beside any of them.
_IS_RESULT = re.compile(_RESULT)
_IS_OURS = re.compile(f"({_any_of(FITTING, _pattern_of(_SELECTION))}/)*{_any_of(_RESULT, *_BESIDE)}({_TEMPORARY})?")
_IS_FIT = re.compile(_FIELDS["fit"])

OVERWRITTEN = frozenset({MANIFEST, MANIFEST_COPY, LOCK, PIXELS})
"""Entries at the top of a folder that stay when a run is removed: the next run writes over them, or uses them."""

UNFINISHED = frozenset({MANIFEST, MANIFEST_COPY, LOCK, CHECKPOINTS, PIXELS, TENSORBOARD, WANDB, _STAGE.format(stage=0)})
"""Entries at the top of a folder before anything of its run is finished."""


def is_ours(name: str) -> bool:
    """Whether a run may have written a file of this name, relative to its folder."""
    return _IS_OURS.fullmatch(name) is not None


def is_result(name: str) -> bool:
    """Whether a manifest may name this file as finished."""
    return _IS_RESULT.fullmatch(name) is not None


def is_temporary(name: str) -> bool:
    """Whether a file is being written, or was when its writer died."""
    return name.endswith(".tmp")


def is_fit_folder(name: str) -> bool:
    """Whether a folder within the checkpoints belongs to a fit of the package."""
    return _IS_FIT.fullmatch(name) is not None


def top_of(name: str) -> str:
    """The top entry of a run's folder that a file is or lies in."""
    return name.split("/")[0]


def votes_folder(stage: int) -> str:
    """The folder of a stage's votes."""
    return _VOTES.format(stage=stage)


def vote_file(stage: int, index: int) -> str:
    """The votes of a task: a file, or a folder of parts."""
    return _VOTE.format(stage=stage, index=index)


def probs_beside(vote_name: str) -> str:
    """The file of probabilities that belongs to a file of votes; in a folder of their own where these are a part."""
    return vote_name.replace(".parquet", ".probs.npy", 1).replace(".parquet", ".npy")


def scores_file(stage: int) -> str:
    """The merged scores of a stage."""
    return _SCORES.format(stage=stage)


def probs_file(stage: int) -> str:
    """The mean probabilities of a stage, in the row order of its scores."""
    return _PROBS.format(stage=stage)


def stage_coreset(stage: int) -> str:
    """The samples that an unfinished run has kept up to a stage."""
    return _STAGE_CORESET.format(stage=stage)


def pixel_folder(fingerprint: str, size_px: int) -> str:
    """The folder of a source's decoded pixels, among those of other sources."""
    return _PIXEL_FOLDER.format(source=fingerprint[:16], size_px=size_px)


def selection_folder(number: int) -> str:
    """The folder of a run that an evaluation made within this one, with the seed raised by `number`."""
    return _SELECTION.format(index=number)


def fit_folder(key: str) -> str:
    """The checkpoints of a fit, by its key."""
    return _FIT.format(fit=key[:32])


def checkpoint_file(key: str) -> str:
    """The file that names a fit's last checkpoint."""
    return _CHECKPOINT.format(fit=key[:32])


def tensors_file(key: str, epoch: int, writer: str, number: int) -> str:
    """A file of tensors of a checkpoint; `writer` is eight hexadecimal digits, unlike any other writer's."""
    return _TENSORS.format(fit=key[:32], epoch=epoch, writer=writer, number=number)


def user_fit_folder(key: str) -> str:
    """Where a user's own fit may keep its state."""
    return _USER_FIT.format(fit=key[:32])
