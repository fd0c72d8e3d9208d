"""Decides which folders of a tree are classes, from its listing alone.

A tree whose top folders are splits, whose classes lie deeper, or that has no classes, is refused with the folder to name instead:
training on its top folders as if they were classes would succeed and mean nothing.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from unseen_ray.data.listing.files import Listing
from unseen_ray.data.listing.image_files import IMAGE_ENDINGS, ending_of
from unseen_ray.data.listing.splits import is_only_split, is_structure, split_of
from unseen_ray.errors import DataError

__all__ = ["ClassTree", "class_tree_of"]

_JUNK = {"__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found", "__pycache__"}
_NAMED = 4  # of a list in a message


@dataclass(frozen=True, slots=True)
class ClassTree:
    """The images of a tree by class.

    Attributes:
        classes: names of the classes, in order.
        images: paths of the images relative to the tree, in order; the class is a path's first part.
        passed_over: in words, what else lies in the tree; empty if nothing does.
    """

    classes: tuple[str, ...]
    images: list[str]
    passed_over: str


def class_tree_of(listing: Listing, *, where: str, images_of: Callable[[Iterable[str]], set[str]]) -> ClassTree:
    """Find the classes of a tree and their images.

    Args:
        listing: all that lies in it.
        where: its path in messages.
        images_of: tells which of some files are images.

    Raises:
        DataError: if its folders are not classes, naming the folder to use instead.
    """
    candidates = [name for name in listing.files if not _is_junk(name)]
    found = images_of(candidates)
    images = sorted(name for name in found if "/" in name)
    tree = _Folders(images, where)
    with_images = tree.below("")
    loose = len(found) - len(images)
    if not images:
        raise _without_classes(where, loose, [name for name in candidates if "/" in name])
    classes = sorted({*with_images, *_empty_folders(listing)})
    tree.check(with_images, classes)
    return ClassTree(tuple(classes), images, _passed_over(listing, found, set(classes), loose))


class _Folders:
    """The folders of a tree that hold images, at any depth."""

    def __init__(self, images: Sequence[str], where: str) -> None:
        self._where = where.rstrip("/")
        self._inner: dict[str, set[str]] = defaultdict(set)
        for folder in {name.rpartition("/")[0] for name in images}:
            parts = folder.split("/")
            for depth, part in enumerate(parts):
                self._inner["/".join(parts[:depth])].add(part)

    def below(self, folder: str) -> list[str]:
        """Sorted names of the folders directly in a folder that hold images, at any depth."""
        return sorted(self._inner.get(folder, ()))

    def check(self, filled: list[str], classes: list[str]) -> None:
        """Refuse folders that are splits, parts, or the only class; some of the classes may have no image."""
        if splits := self._splits("", classes):
            raise self._are_splits("", splits)
        holds_classes = len(self.below(self._deepest(filled[0]))) > 1
        if len(filled) == 1 and (len(classes) == 1 or holds_classes or is_only_split(filled[0])):
            raise self._one_class(filled[0])
        if is_structure(classes):
            raise DataError(
                f"the folders of source {self._where} ({_some(classes)}) are named like parts of a data set, not like classes. "
                f"Expected {self._where}/<class>/<image>; rename them if they are classes."
            )
        for name in classes:
            inside = self._deepest(name)
            splits = self._splits(inside, self.below(inside))
            if len(set(map(split_of, splits))) > 1:
                raise DataError(
                    f"folder {inside} of source {self._where} holds the splits {_some(splits)}: the images of all of them would be "
                    "pruned together. Make a tree of the split to prune, with one folder per class; symbolic links to its "
                    "folders are enough."
                )

    def _splits(self, folder: str, names: Collection[str]) -> list[str]:
        """The splits among the folders side by side in `folder`; empty if these are not splits."""
        splits = [name for name in names if split_of(name)]
        if len(splits) > 1 and all(map(is_only_split, names)):
            return splits
        if len({split_of(name) for name in splits}) < 2:
            return []
        inner = [self._classes_in(f"{folder}/{name}".lstrip("/")) for name in splits]
        plain = [name for name in splits if is_only_split(name)]
        if len({split_of(name) for name in plain}) > 1 and not any(inner):
            return plain  # of images without classes, beside whatever else
        shared = any(one & other for at, one in enumerate(inner) for other in inner[:at])
        return splits if shared else []

    def _classes_in(self, folder: str) -> set[str]:
        return set(self.below(self._deepest(folder)))

    def _deepest(self, folder: str) -> str:
        """The first folder on the way down that holds more than one folder, or else images alone."""
        while len(names := self.below(folder)) == 1:
            folder = f"{folder}/{names[0]}".lstrip("/")
        return folder

    def _are_splits(self, folder: str, splits: list[str]) -> DataError:
        train = next((name for name in splits if split_of(name) == "train"), splits[0])
        inside = self._deepest(f"{folder}/{train}".lstrip("/"))
        # Where the split holds no class folders, the split itself is what the user knows.
        place = inside if self.below(inside) else f"{folder}/{train}".lstrip("/")
        return DataError(
            f"source {self._where}{'/' * bool(folder)}{folder} holds the splits {', '.join(splits)}, not classes. "
            f"Set source: {self._where}/{place} (and test: the split to measure on)."
        )

    def _one_class(self, name: str) -> DataError:
        inside = self._deepest(name)
        names = self.below(inside)
        if not names:
            return DataError(
                f"all images of source {self._where} lie in one folder, {inside}: so there is only one class. "
                f"Expected {self._where}/<class>/<image> with two classes or more, or Parquet files (*.parquet) with a label column."
            )
        if splits := self._splits(inside, names):
            return self._are_splits(inside, splits)
        return DataError(
            f"source {self._where} holds one folder, {name}, so that all images would be of one class. The classes seem to be "
            f"{_some(names)}: set source: {self._where}/{inside}."
        )


def _is_junk(name: str) -> bool:
    return any(part.lower() in _JUNK for part in name.split("/"))


def _empty_folders(listing: Listing) -> set[str]:
    """Top folders without any file: classes of which no image is there, which keep their number."""
    filled = {
        name.split("/", 1)[0]
        for name in (*listing.files, *listing.repeated, *listing.broken, *listing.special)
        if "/" in name
    }
    return {name for name in listing.folders if "/" not in name and name not in filled and not _is_junk(name)}


def _without_classes(where: str, loose: int, others: list[str]) -> DataError:
    held = f"; {loose} images lie directly in it, without a class" if loose else ""
    if others and not loose:
        held = f"; {len(others)} other files lie in its folders ({_by_ending(others)})"
    return DataError(
        f"source {where} holds no images in class folders{held}. Expected {where.rstrip('/')}/<class>/<image> "
        f"with one of {' '.join(IMAGE_ENDINGS)}, or Parquet files (*.parquet)."
    )


def _passed_over(listing: Listing, images: set[str], classes: set[str], loose: int) -> str:
    """What lies in the tree and is no image of a class, in words."""
    others = [name for name in listing.files if name not in images and not _is_junk(name)]
    folders = {name.split("/", 1)[0] for name in (*listing.files, *listing.folders) if "/" in name} - classes
    within = [name for name in others if name.split("/", 1)[0] in classes]
    top = [name for name in others if "/" not in name]
    parts = [
        *([_count(loose, "image") + " beside the class folders"] if loose else []),
        *([f"{_count(len(top), 'file')} beside the class folders that {_are_no_images(top)} ({_by_ending(top)})"] if top else []),
        *([f"{_count(len(within), 'file')} in class folders that {_are_no_images(within)} ({_by_ending(within)})"] if within else []),
        *([f"{_count(len(folders), 'folder')} without images ({_some(sorted(folders))})"] if folders else []),
        *([f"{_count(len(links), 'link')} to a folder listed already ({_some(links)})"] if (links := sorted(listing.repeated)) else []),
        *([f"{_count(len(names), 'special file')} ({_some(names)})"] if (names := sorted(listing.special)) else []),
        *([f"{_count(len(links), 'link')} to nowhere ({_some(links)})"] if (links := sorted(listing.broken)) else []),
        *([f"{_count(listing.not_utf8, 'name')} not in UTF-8"] if listing.not_utf8 else []),
    ]  # fmt: skip
    return "; ".join(parts)


def _by_ending(names: Iterable[str]) -> str:
    counts = Counter(ending_of(name) or "no ending" for name in names)
    return ", ".join(f"{count} {ending}" for ending, count in counts.most_common(_NAMED)) + _more(len(counts))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + _more(len(names))


def _more(count: int) -> str:
    return f" and {count - _NAMED} more" if count > _NAMED else ""


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _are_no_images(names: Collection[str]) -> str:
    return "is not an image" if len(names) == 1 else "are not images"
