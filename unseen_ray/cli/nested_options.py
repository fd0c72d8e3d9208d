"""What `--help-all` lists below a field that takes a mapping: `--source.limit`, `--scoring.share`."""

from __future__ import annotations

import inspect

from unseen_ray.config.scoring import Scoring

__all__ = ["nested_records"]

_OF_SOURCES = {
    "path": "where the data is: a file, a folder, a pattern or a URI",
    "root": "folder that holds the data set as torchvision lays it out",
    "split": "train or test; of imagenet train or val",
    "image": "column or tar member of the image",
    "label": "column or tar member of the label",
    "images": "folder below which rows name their images",
    "classes": "file of class names, one a line; of labels, the number of classes",
    "size": "height and width to scale images to, in pixels",
    "limit": "only the first rows",
}


def nested_records(field: str) -> list[tuple[str, str]]:
    """(flag, description) of each option of a field; none for a field without options that are known beforehand."""
    if field == "scoring":
        return [(f"--scoring.{name}", str(each.description)) for name, each in Scoring.model_fields.items()]
    return _records_of_sources() if field == "source" else []


def _records_of_sources() -> list[tuple[str, str]]:
    from unseen_ray.data.sources.registry import SOURCES

    takers: dict[str, list[str]] = {}
    for source, function in SOURCES.items():
        for name in inspect.signature(function).parameters:
            takers.setdefault(name, []).append(source)
    return [
        (f"--source.{name}", f"{text}; for {'all' if len(takers[name]) == len(SOURCES) else ', '.join(takers[name])}")
        for name, text in _OF_SOURCES.items()
    ]
