"""Where samples come from. Labels and counts need neither torch nor a decoded pixel."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from unseen_ray.data.sources.info import Encoded, RawImage, Source, SourceInfo, encoded_of, key_column
from unseen_ray.errors import ConfigError
from unseen_ray.plugins import bind_options, did_you_mean, import_target, is_target, name_of
from unseen_ray.storage.filesystem import absolute_path, filesystem_of
from unseen_ray.storage.path_validation import as_text, path_problem
from unseen_ray.storage.patterns import is_glob

__all__ = [
    "SOURCES",
    "Encoded",
    "RawImage",
    "Source",
    "SourceInfo",
    "SourceRef",
    "default_test",
    "encoded_of",
    "key_column",
    "open_source",
    "source_ref",
]

IMAGENET_SIZE_PX = 224


@dataclass(frozen=True, slots=True)
class SourceRef:
    """How to open a source, on any machine.

    Attributes:
        use: a name of `SOURCES`, `package.module:function`, or the function itself.
        options: its keyword options.
    """

    use: str | Callable[..., Any]
    options: dict[str, Any] = field(default_factory=dict)

    def absolute(self) -> SourceRef:
        """The same source with absolute local paths, so that another process can open it."""
        if not isinstance(self.use, str) or self.use not in SOURCES:
            return self
        parameters = inspect.signature(SOURCES[self.use]).parameters
        places = {name: self.options.get(name, parameters[name].default) for name in path_options(self.use)}
        paths: dict[str, Any] = {name: absolute_path(place) for name, place in places.items() if place is not None}
        return SourceRef(self.use, {**self.options, **paths})

    @property
    def places(self) -> list[str]:
        """The folders, files or globs whose content is the data, so that a new file there may change it."""
        if self.use not in SOURCES:
            return []
        options = self.absolute().options
        if self.use == "imagenet":
            return [f"{options['root']}/{options.get('split', 'train')}"]
        return [str(options["path"])] if "path" in options else []

    def plain(self) -> Any:
        """The source as a configuration writes it."""
        return {"use": self.use, **self.options} if self.options else self.use


def _digits(*, limit: int | None = None) -> Source:
    """1,797 handwritten digits of 8 x 8 pixels, bundled with scikit-learn"""
    from unseen_ray.data.sources.digits import DigitsSource

    return DigitsSource(limit=limit)


def _cifar10(*, root: str = "data", split: str = "train", limit: int | None = None) -> Source:
    """torchvision's CIFAR-10 under `root`; its test split is the default `test`"""
    from unseen_ray.data.sources.cifar.source import CifarSource

    return CifarSource("cifar10", root=root, split=_split(split, "train", "test"), limit=limit)  # type: ignore[arg-type]


def _cifar100(*, root: str = "data", split: str = "train", limit: int | None = None) -> Source:
    """torchvision's CIFAR-100 under `root`; its test split is the default `test`"""
    from unseen_ray.data.sources.cifar.source import CifarSource

    return CifarSource("cifar100", root=root, split=_split(split, "train", "test"), limit=limit)  # type: ignore[arg-type]


def _imagenet(
    *, root: str = "data", split: str = "train", size: int = IMAGENET_SIZE_PX, limit: int | None = None
) -> Source:
    """ImageNet-1K as torchvision unpacks it, root/train and root/val; val is the default `test`"""
    from unseen_ray.data.sources.folder import FolderSource

    path = f"{root.rstrip('/')}/{_split(split, 'train', 'val')}"
    return FolderSource(path=path, size=size, limit=limit, name=f"imagenet {split}")


def _parquet(
    *,
    path: str,
    image: str | None = None,
    label: str = "label",
    size: int | None = None,
    limit: int | None = None,
    images: str | None = None,
) -> Source:
    """Parquet in the Hugging Face image schema: a file, a glob or a folder, local or a URI"""
    from unseen_ray.data.sources.parquet import ParquetSource

    return ParquetSource(path=path, image=image, label=label, size=size, limit=limit, images=images)


def _arrow(
    *,
    path: str,
    image: str | None = None,
    label: str = "label",
    size: int | None = None,
    limit: int | None = None,
    images: str | None = None,
) -> Source:
    """a folder that `datasets` wrote with save_to_disk, or one .arrow file"""
    from unseen_ray.data.sources.arrow import ArrowSource

    return ArrowSource(path=path, image=image, label=label, size=size, limit=limit, images=images)


def _list(
    *,
    path: str,
    image: str | None = None,
    label: str = "label",
    size: int | None = None,
    limit: int | None = None,
    images: str | None = None,
) -> Source:
    """paths of images with their labels, as a .csv, .tsv or .jsonl file"""
    from unseen_ray.data.sources.image_list import ListSource

    return ListSource(path=path, image=image, label=label, size=size, limit=limit, images=images)


def _webdataset(
    *,
    path: str,
    image: str | None = None,
    label: str = "cls",
    classes: str | None = None,
    size: int | None = None,
    limit: int | None = None,
) -> Source:
    """WebDataset tars: a file, a pattern such as train-{000..146}.tar, or a folder, local or a URI"""
    from unseen_ray.data.sources.webdataset.source import WebDatasetSource

    return WebDatasetSource(path=path, image=image, label=label, classes=classes, size=size, limit=limit)


def _folder(*, path: str, size: int | None = None, limit: int | None = None) -> Source:
    """a class-per-folder tree of images, path/<class>/<image>, local or a URI"""
    from unseen_ray.data.sources.folder import FolderSource

    return FolderSource(path=path, size=size, limit=limit)


def _labels(*, path: str, classes: int | None = None, limit: int | None = None) -> Source:
    """(N,) integer labels in a .npy file, without images: enough for `score`"""
    from unseen_ray.data.sources.labels_only import LabelsSource

    return LabelsSource(path=path, classes=classes, limit=limit)


SOURCES: dict[str, Callable[..., Source]] = {
    "digits": _digits,
    "cifar10": _cifar10,
    "cifar100": _cifar100,
    "imagenet": _imagenet,
    "parquet": _parquet,
    "folder": _folder,
    "arrow": _arrow,
    "list": _list,
    "webdataset": _webdataset,
    "labels": _labels,
}


def path_options(use: str) -> tuple[str, ...]:
    """Which options of a built-in source are paths."""
    parameters = inspect.signature(SOURCES[use]).parameters
    return tuple(
        name for name in ("path", "root", "images", *(["classes"] if use == "webdataset" else [])) if name in parameters
    )


_BY_ENDING = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".csv": "list",
    ".tsv": "list",
    ".jsonl": "list",
    ".tar": "webdataset",
}
_TEST_SPLITS = {"cifar10": "test", "cifar100": "test", "imagenet": "val"}


def source_ref(value: str | Mapping[str, Any] | Callable[..., Any], *, field: str = "source") -> SourceRef:
    """Normalise the source of a configuration.

    Args:
        value: a name, a path or URI, `package.module:function`, a mapping with `use` (or with `path` alone), a function.
        field: the configuration's field, for messages.

    Raises:
        ConfigError: if it does not name a source, or has an option that the source does not take.
    """
    if callable(value):
        return SourceRef(value)
    value = as_text(value)
    if hasattr(value, "__getitem__") and not isinstance(value, (str, bytes, list, Mapping)):
        raise ConfigError(
            f"{field} is a {type(value).__name__}, an object in memory. Only ur.prune(source=..., test=..., out=...) takes one: it writes "
            "the samples beside the run. Elsewhere, give a name, a path or URI, a mapping, or a function."
        )
    options = dict(value) if isinstance(value, Mapping) else {}
    if bad := [key for key in options if not isinstance(key, str)]:
        raise ConfigError(f"{field}: option names must be text, not {bad[0]!r}. Write {{use: ..., path: ...}}.")
    use = as_text(options.pop("use", None)) if isinstance(value, Mapping) else value
    options = {name: as_text(option) for name, option in options.items()}
    ours = use is None or use in SOURCES if isinstance(use, (str, type(None))) else False
    named = path_options(use) if isinstance(use, str) and ours else ("path", "root")
    places = {f"{field}.{name}": options[name] for name in named if ours and name in options}
    if problems := [problem for name, place in places.items() if (problem := path_problem(name, place))]:
        raise ConfigError(problems)
    if use is None and "path" in options:
        use = _kind_of(options["path"])
    if use is None:
        raise ConfigError(
            f"{field}: a mapping needs `use` (one of {', '.join(SOURCES)}) or `path`, and has {sorted(options)}."
        )
    if callable(use):
        return SourceRef(use, options)
    if problem := path_problem(field, use, "a name, a path or URI, or package.module:function"):
        raise ConfigError(problem)
    if use not in SOURCES and not is_target(use):
        if not _looks_like_path(use):
            raise ConfigError(
                f"{field}={use!r} is not a source, and no file or folder of that name is here. Allowed: {', '.join(SOURCES)}, "
                f"a path or URI, or package.module:function.{did_you_mean(use, SOURCES)}"
            )
        options = {"path": use, **options}
        use = _kind_of(use)
    if field == "test" and use in _TEST_SPLITS:
        options = {"split": _TEST_SPLITS[use], **options}
    ref = SourceRef(use, options)
    if use in SOURCES:
        _check_options(ref, field)
    return ref


def open_source(ref: SourceRef) -> Source:
    """Open a source on this machine.

    Raises:
        ConfigError: if its function does not exist or does not take the options.
        DataError: if the data is missing or malformed.
    """
    if isinstance(ref.use, str) and ref.use in SOURCES:
        return SOURCES[ref.use](**ref.options)
    from unseen_ray.data.sources.custom import CustomSource, settings_of

    function = import_target(ref.use) if isinstance(ref.use, str) else ref.use
    name = name_of(ref.use)
    options = dict(ref.options)
    size = options.pop("size", None)
    bind_options(function, options, field="source", name=name)
    try:
        samples = function(**options)
    except TypeError as error:
        raise ConfigError(f"source {name} could not be called with {options}: {error}.") from error
    return CustomSource(samples, name=name, size=size, settings=settings_of(function, options))


def default_test(ref: SourceRef) -> SourceRef | None:
    """The test split of a source that is a training split, or None."""
    split = _TEST_SPLITS.get(ref.use) if isinstance(ref.use, str) else None
    if split is None or ref.options.get("split", "train") != "train":
        return None
    options = {key: value for key, value in ref.options.items() if key != "limit"}
    return SourceRef(ref.use, {**options, "split": split})


def _looks_like_path(text: str) -> bool:
    return any(mark in text for mark in "/\\*?.~") or os.path.exists(text)


def _kind_of(path: str) -> str:
    from pyarrow.fs import FileType

    from unseen_ray.data.listing.shard_files import kind_of_folder

    if (ending := os.path.splitext(path)[1]) in _BY_ENDING:
        return _BY_ENDING[ending]
    if is_glob(path):
        return "parquet"
    try:
        fs, root = filesystem_of(path)
        saved = fs.get_file_info([f"{root}/{name}" for name in ("state.json", "dataset_dict.json")])
        if any(each.type == FileType.File for each in saved):
            return "arrow"
        kind = fs.get_file_info(root).type
        return kind_of_folder(fs, root) if kind == FileType.Directory else "parquet"
    except OSError:
        return "parquet"  # opening the source reports the error


def _check_options(ref: SourceRef, field: str) -> None:
    assert isinstance(ref.use, str)
    function = SOURCES[ref.use]
    bind_options(function, ref.options, field=field, name=ref.use)
    needed = [p.name for p in inspect.signature(function).parameters.values() if p.default is p.empty]
    problems = [
        f"{field}: {ref.use} needs {name!r}; write {{use: {ref.use}, {name}: ...}}."
        for name in needed
        if name not in ref.options
    ]
    for name in ("limit", "size"):
        value = ref.options.get(name)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            problems.append(f"{field}.{name}={value!r} must be a whole number, 1 or more.")
    for name in ("image", "label", "split"):
        value = ref.options.get(name)
        if value is not None and not (isinstance(value, str) and value):
            problems.append(f"{field}.{name}={value!r} must be text.")
    if problems:
        raise ConfigError(problems)


def _split(given: str, *allowed: str) -> str:
    if given not in allowed:
        raise ConfigError(f"split={given!r} is none of {', '.join(allowed)}.")
    return given
