"""Sources of a user's own, and the digits: what an object must have, and what is said of one that has not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from unseen_ray.data.sources.custom import CustomSource
from unseen_ray.data.sources.digits import DigitsSource
from unseen_ray.data.sources.info import SourceInfo
from unseen_ray.data.sources.registry import SourceRef, open_source, source_ref
from unseen_ray.errors import ConfigError, DataError
from unseen_ray.runs.manifest_entries import source_entry


class Samples:
    """The least that a user's source needs."""

    def __init__(
        self, labels: Any = (0, 1, 2, 1), *, size_px: int = 6, keys: Any = None, image: Any = None, **more: Any
    ) -> None:
        self.labels = labels
        self.keys = [f"sample-{number}" for number in range(len(labels))] if keys is None else keys
        self._count, self._size_px, self._image = len(labels), size_px, image
        self.__dict__.update(more)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> Any:
        if self._image is not None:
            return self._image
        return np.full((self._size_px, self._size_px, 3), number, np.uint8)


def make_samples(*, count: int = 4) -> Samples:
    return Samples(np.arange(count) % 2)


def make_shaded(*, shade: int = 0, root: str = "/data") -> Samples:
    return Samples(image=np.full((6, 6, 3), shade, np.uint8))


def make_needing(root: str) -> Samples:
    return Samples([len(root)])


def make_list() -> list[int]:
    return [1, 2]


not_a_function = 7


def opened(samples: Any, **options: Any) -> CustomSource:
    return CustomSource(samples, name="lab:samples", **options)


def test_an_object_with_len_labels_keys_and_items_is_a_source() -> None:
    source = opened(Samples())
    assert source.info.labels_N.tolist() == [0, 1, 2, 1] and source.info.labels_N.dtype == np.int64
    assert (source.info.num_classes, source.info.size_px, source.info.original_px) == (3, 6, (6, 6))
    assert source.keys([3, 0]) == ["sample-3", "sample-0"]
    assert [(number, int(raw[0, 0, 0])) for number, raw in source.read(np.array([2, 0]))] == [(2, 2), (0, 0)]


@pytest.mark.parametrize("labels", [[0, 1], (0, 1), np.array([0, 1], np.int32), np.array([0, 1], np.uint8), range(2)])
def test_labels_may_be_any_integers(labels: Any) -> None:
    assert opened(Samples(labels)).info.labels_N.tolist() == [0, 1]


def test_labels_may_be_a_tensor() -> None:
    import torch

    assert opened(Samples(torch.tensor([0, 1]))).info.labels_N.tolist() == [0, 1]


def test_class_names_give_c() -> None:
    info = opened(Samples(class_names=["a", "b", "c", "d"])).info
    assert (info.num_classes, info.class_names) == (4, ("a", "b", "c", "d"))
    with pytest.raises(DataError, match=r"has label 2, but its metadata names 2 classes"):
        _ = opened(Samples(class_names=["a", "b"])).info


def test_large_images_are_brought_to_64_unless_a_size_is_given() -> None:
    assert opened(Samples(size_px=80)).info.size_px == 64
    assert opened(Samples(size_px=80), size=70).info.size_px == 70
    ref = source_ref({"use": f"{__name__}:make_samples", "size": 12, "count": 5})
    assert (open_source(ref).info.size_px, len(open_source(ref).info)) == (12, 5)


@pytest.mark.parametrize("wrong", [[1, 2], {"a": 1}, None, 3, "text", np.zeros((4, 6, 6, 3), np.uint8)], ids=str)
def test_an_object_that_lacks_something_is_told_what(wrong: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"source lab:samples returned a \w+ without .*labels.*It must have __len__, labels"
    ):
        opened(wrong)


def test_keys_that_are_a_method_are_refused() -> None:
    samples = Samples()
    samples.keys = lambda: ["a", "b", "c", "d"]  # type: ignore[assignment]
    with pytest.raises((ConfigError, DataError), match="keys"):
        opened(samples)


@pytest.mark.parametrize("labels", [None, 3], ids=str)
def test_labels_that_have_no_length_are_refused(labels: Any) -> None:
    samples = Samples()
    samples.labels = labels
    with pytest.raises((ConfigError, DataError), match="labels"):
        opened(samples)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (Samples(keys=["a", "b"]), r"has 4 samples, 4 labels and 2 keys"),
        (Samples(keys=["a", "b", "a", "c"]), r"has duplicate keys"),
        (Samples([]), r"holds no samples"),
        (Samples([0, -1]), r"row 1 of lab:samples has label -1"),
        (Samples([0.0, 1.0]), r"the labels of lab:samples are float64"),
        (Samples(["cat", "dog"]), r"the labels of lab:samples are <U3.* Map class names to numbers first"),
        (Samples([[0], [1]]), r"the labels of lab:samples are int64 of shape \(2, 1\)"),
        (Samples([True, False]), r"the labels of lab:samples are bool"),
        (Samples([None, 1]), r"the labels of lab:samples are object"),
        (Samples(image=np.zeros((6, 6, 3))), r"sample sample-0 .* is float64 of shape \(6, 6, 3\); it must be uint8"),
        (Samples(image=np.zeros((6, 6), np.uint8)), r"is uint8 of shape \(6, 6\)"),
        (Samples(image=np.zeros((3, 6, 6), np.uint8)), r"is uint8 of shape \(3, 6, 6\)"),
        (Samples(image=np.zeros((6, 6, 4), np.uint8)), r"is uint8 of shape \(6, 6, 4\)"),
        (Samples(image=np.zeros((0, 6, 3), np.uint8)), r"shape \(0, 6, 3\)"),
        (Samples(image="a path"), r"it must be uint8 of shape \(H, W, 3\)"),
    ],
)
def test_data_that_is_not_as_it_must_be_is_told_by_sample(samples: Samples, message: str) -> None:
    with pytest.raises(DataError, match=message):
        _ = opened(samples).info


def test_the_fingerprint_is_of_the_name_the_labels_the_keys_and_the_user_s_own() -> None:
    prints = [opened(samples).info.fingerprint for samples in (
        Samples(), Samples([0, 1, 2, 2]), Samples(keys=list("abcd")), Samples(fingerprint="v2"), Samples([0, 1, 2]),
    )]  # fmt: skip
    prints.append(CustomSource(Samples(), name="lab:others").info.fingerprint)
    assert len(set(prints)) == len(prints)
    assert opened(Samples()).info.fingerprint == prints[0]


def test_other_options_are_other_data_wherever_it_lies() -> None:
    def of(**options: Any) -> SourceInfo:
        return open_source(SourceRef(make_shaded, options)).info

    plain, entry = of(), source_entry(of())
    for same in (of(shade=0), of(root="/elsewhere")):
        assert plain.content == same.content and entry.is_same_data(same)
    assert plain.content != of(shade=9).content and not entry.is_same_data(of(shade=9))
    assert not plain.is_of_same_data(open_source(SourceRef(make_samples)).info)


@pytest.mark.parametrize(
    ("use", "options", "message"),
    [
        ("nosuch_package.module:source", {}, r"there is no module 'nosuch_package\.module'"),
        (f"{__name__}:make_sample", {}, r"has no 'make_sample'\. Did you mean 'make_samples'\?"),
        (f"{__name__}:make_samples", {"cuont": 3}, r"takes no option 'cuont'; it takes count\. Did you mean 'count'\?"),
        (f"{__name__}:make_needing", {}, r"make_needing could not be called with \{\}"),
        (f"{__name__}:make_list", {}, r"returned a list without labels, keys"),
        (f"{__name__}:not_a_function", {}, r"not_a_function"),
    ],
)
def test_a_function_that_cannot_be_had_or_called_is_a_configuration_s_fault(
    use: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        open_source(source_ref({"use": use, **options}))


def test_a_function_itself_is_called_with_its_options() -> None:
    assert len(open_source(SourceRef(make_samples, {"count": 7})).info) == 7
    assert len(open_source(source_ref(make_samples)).info) == 4
    assert open_source(source_ref(make_samples)).info.name == f"{__name__}:make_samples"


def test_the_digits_are_all_there() -> None:
    source = DigitsSource()
    assert (len(source.info), source.info.num_classes, source.info.size_px) == (1797, 10, 8)
    assert np.bincount(source.info.labels_N).min() > 170
    keys = source.keys(range(1797))
    assert len(set(keys)) == 1797 and keys[17] == "digits:17"
    read = list(source.read([5, 0]))
    assert [number for number, _ in read] == [5, 0]
    assert all(raw.shape == (8, 8, 3) and raw.dtype == np.uint8 for _, raw in read)
    assert max(int(raw.max()) for _, raw in source.read(range(100))) == 255


def test_the_fingerprint_of_the_digits_follows_limit() -> None:
    assert (
        DigitsSource().info.fingerprint == DigitsSource().info.fingerprint != DigitsSource(limit=1796).info.fingerprint
    )
    assert len(DigitsSource(limit=20).info) == 20 and DigitsSource(limit=20).info.num_classes == 10
    assert len(DigitsSource(limit=5000).info) == 1797


def test_any_object_with_the_attributes_will_do_as_a_namespace_does_not() -> None:
    with pytest.raises(ConfigError, match=r"without __len__, __getitem__"):
        opened(SimpleNamespace(labels=[0], keys=["a"]))
