"""Samples in memory as a source: written once, read back pixel for pixel, known again, and refused where they are none."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

import unseen_ray as ur
from unseen_ray.data.images.decode import to_pixels
from unseen_ray.data.prepare.objects import store_samples
from unseen_ray.data.sources.registry import open_source, source_ref
from unseen_ray.errors import RunInUseError
from unseen_ray.storage.filesystem import Folder
from unseen_ray.storage.lock import LOCK, held

RNG = np.random.default_rng(0)
IMAGES, LABELS = RNG.integers(0, 256, (60, 8, 8, 3), np.uint8), np.arange(60) % 3
QUICK: dict[str, Any] = {
    "keep": 0.5,
    "folds": 2,
    "recipe": {"epochs": 1, "min_steps": 0},
    "policy": "top",
    "log_to": "none",
}


class Pairs(torch.utils.data.Dataset[tuple[Any, Any]]):
    """A map-style data set; `kind` says in which form it gives an image."""

    def __init__(self, kind: str = "pil") -> None:
        self.kind, self.classes = kind, ["a", "b", "c"]

    def __len__(self) -> int:
        return len(IMAGES)

    def __getitem__(self, number: int) -> tuple[Any, Any]:
        forms = {
            "pil": Image.fromarray,
            "tensor": lambda image: torch.from_numpy(image).permute(2, 0, 1),
            "float": lambda image: torch.from_numpy(image).float(),
        }
        return forms[self.kind](IMAGES[number]), torch.tensor(LABELS[number])


class FourMembers:
    """What README asks of a source."""

    labels, keys, class_names = LABELS, [f"img/{number}.png" for number in range(60)], ("a", "b", "c")

    def __len__(self) -> int:
        return len(IMAGES)

    def __getitem__(self, number: int) -> Any:
        return IMAGES[number]


class Listed(torch.utils.data.Dataset[Any]):
    """Some pairs as a map-style data set."""

    def __init__(self, pairs: list[Any]) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, number: int) -> Any:
        return self.pairs[number]


def hf() -> Any:
    import datasets

    def encoded(image: Any) -> bytes:
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "PNG")
        return stream.getvalue()

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])})
    rows = {"image": [{"bytes": encoded(image), "path": None} for image in IMAGES], "label": LABELS.tolist()}
    return datasets.Dataset.from_dict(rows, features=features)


FORMS = [lambda: (IMAGES, LABELS), Pairs, lambda: Pairs("tensor"), FourMembers, hf]


@pytest.mark.parametrize("form", FORMS, ids=["arrays", "torch", "tensors", "members", "hf"])
def test_what_was_written_is_what_the_object_holds(form: Any, tmp_path: Path) -> None:
    source = open_source(source_ref(store_samples(form(), Folder(str(tmp_path / "data")))))
    assert source.info.labels_N.tolist() == LABELS.tolist()
    assert source.info.class_names in ((), ("a", "b", "c"))
    for number, raw in source.read(range(60)):
        assert np.array_equal(to_pixels(raw, 8), IMAGES[number])
    assert source.keys([7]) == ["img/7.png" if form is FourMembers else "7"]


def test_grey_images_are_taken(tmp_path: Path) -> None:
    grey = IMAGES[..., 0]
    for name, images in (("flat", grey), ("channel", grey[..., None])):
        source = open_source(source_ref(store_samples((images, LABELS), Folder(str(tmp_path / name)))))
        ((_, raw),) = source.read([5])
        assert np.array_equal(to_pixels(raw, 8)[..., 0], grey[5])


def test_sixteen_bits_are_scaled_by_their_type_and_pixels_of_unknown_range_refused(tmp_path: Path) -> None:
    """Pillow's own conversion would cut 16-bit grey off at 255, and make a float picture black."""
    deep = np.arange(0, 65536, 1024, dtype=np.uint16).reshape(8, 8)
    samples = [(Image.fromarray(deep), 0), (Image.fromarray(deep[::-1]), 1)]
    source = open_source(source_ref(store_samples(Listed(samples), Folder(str(tmp_path / "deep")))))
    ((_, raw),) = source.read([0])
    assert np.array_equal(to_pixels(raw, 8)[..., 0], deep >> 8)
    for kind in (np.float32, np.int32):
        samples[1] = Image.fromarray(deep.astype(kind)), 1
        with pytest.raises(ur.DataError, match=r"the image of sample 1 cannot be used: its pixels are .*32-bit"):
            store_samples(Listed(samples), Folder(str(tmp_path / np.dtype(kind).name)))


def test_labels_between_two_classes_are_refused(tmp_path: Path) -> None:
    samples = FourMembers()
    samples.labels = LABELS + 0.5
    with pytest.raises(ur.DataError, match=r"the label of sample 0 is .*0\.5.*; it must be an integer"):
        store_samples(samples, Folder(str(tmp_path / "data")))


@pytest.mark.parametrize("number", [0, 1, 31, 59])
def test_one_corrected_label_is_noticed(tmp_path: Path, number: int) -> None:
    labels = LABELS.copy()
    store_samples((IMAGES, labels), Folder(str(tmp_path / "data")))
    labels[number] = (labels[number] + 1) % 3
    with pytest.raises(ur.ConfigError, match="holds other samples than this source"):
        store_samples((IMAGES, labels), Folder(str(tmp_path / "data")))


def test_the_same_samples_are_not_written_twice_and_others_are_refused(tmp_path: Path) -> None:
    to = Folder(str(tmp_path / "data"))
    store_samples((IMAGES, LABELS), to)
    before = {path: path.stat().st_mtime_ns for path in Path(to.root).iterdir()}
    store_samples((IMAGES.copy(), LABELS.tolist()), to)
    assert {path: path.stat().st_mtime_ns for path in Path(to.root).iterdir()} == before
    with pytest.raises(ur.ConfigError, match="holds other samples than this source"):
        store_samples((IMAGES, (LABELS + 1) % 3), to)
    store_samples((IMAGES, (LABELS + 1) % 3), to, anew=True)
    assert open_source(source_ref(to.root)).info.labels_N.tolist() == ((LABELS + 1) % 3).tolist()


@pytest.mark.parametrize("fresh", [False, True])
def test_samples_of_a_driver_at_work_are_not_replaced(tmp_path: Path, fresh: bool) -> None:
    out, place = str(tmp_path / "run"), tmp_path / "run-source"
    store_samples((IMAGES, LABELS), Folder(str(place)))
    before = {path: path.read_bytes() for path in place.iterdir()}
    with held(Folder(out)), pytest.raises(ur.UnseenError, match="is held by process"):
        ur.prune(source=(255 - IMAGES, LABELS), out=out, executor="local", fresh=fresh, **QUICK)
    assert {path: path.read_bytes() for path in place.iterdir()} == before


def test_a_driver_that_has_lost_its_run_writes_no_samples(tmp_path: Path) -> None:
    with held(Folder(str(tmp_path / "run"))) as lock:
        lease = tmp_path / "run" / LOCK
        lease.write_text(json.dumps({**json.loads(lease.read_text()), "token": "of another driver"}))
        with pytest.raises(RunInUseError, match="another driver has taken over"):
            store_samples((IMAGES, LABELS), Folder(str(tmp_path / "data"), lock.folder.fence))
    assert not (tmp_path / "data").exists()


def test_what_others_have_written_stays(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ur.ConfigError, match=r"holds mine\.txt"):
        store_samples((IMAGES, LABELS), Folder(str(tmp_path)))


def test_an_interrupted_write_is_not_read_and_is_done_again(tmp_path: Path) -> None:
    class Breaks(FourMembers):
        fails = True

        def __getitem__(self, number: int) -> Any:
            if self.fails and number == 33:  # not among those by which an object is known again, of 1,000
                raise KeyboardInterrupt
            return IMAGES[number % 60]

        labels, keys = np.arange(1000) % 3, [str(number) for number in range(1000)]

        def __len__(self) -> int:
            return 1000

    samples, to = Breaks(), Folder(str(tmp_path / "data"))
    with pytest.raises(KeyboardInterrupt):
        store_samples(samples, to)
    samples.fails = False
    assert len(open_source(source_ref(store_samples(samples, to))).info) == 1000


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([1, 2, 3], "source is of type list, whose samples cannot be read. Accepted are a pair"),
        ((RNG.random((60, 4)), LABELS), "rows of features, which have no pixels"),
        ((IMAGES, LABELS[:7]), "source has 60 images and 7 labels. Give one label for each image"),
        (
            pa.table({"image": [b""], "label": [0]}).to_pandas(),
            "source is of type DataFrame, whose samples cannot be read",
        ),
        ((IMAGES, LABELS / 2), "the labels of source are float64; they must be integers"),
    ],
)
def test_what_is_no_source_is_refused(source: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ur.ConfigError, match=message):
        ur.prune(source=source, keep=0.5, executor="local", out=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_labels_may_be_the_names_of_classes(tmp_path: Path) -> None:
    names = np.array(["fly", "ant", "bee"])
    info = open_source(source_ref(store_samples((IMAGES, names[LABELS % 3]), Folder(str(tmp_path / "data"))))).info
    assert info.class_names == ("ant", "bee", "fly") and info.labels_N.tolist() == [
        (2, 0, 1)[label % 3] for label in LABELS
    ]


def test_a_transform_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(ur.DataError, match=r"the image of sample 0 is float32 .* without its transform"):
        ur.prune(source=Pairs("float"), keep=0.5, out=tmp_path / "run")


def test_objects_need_a_place_and_sound_fields(tmp_path: Path) -> None:
    with pytest.raises(ur.ConfigError, match="source is an object in memory, to be written to <out>-source"):
        ur.prune(source=(IMAGES, LABELS), keep=0.5)
    with pytest.raises(ur.ConfigError, match="keep=7 is outside"):
        ur.prune(source=(IMAGES, LABELS), keep=7, out=tmp_path / "run")
    with pytest.raises(ur.ConfigError, match=r"source is a tuple, an object in memory. Only ur\.prune"):
        ur.plan(source=(IMAGES, LABELS), keep=0.5)
    assert list(tmp_path.iterdir()) == []


def test_a_run_of_an_object_is_resumed_and_its_test_set_measured(tmp_path: Path) -> None:
    fields: dict[str, Any] = {**QUICK, "executor": "local", "out": tmp_path / "run", "test": (IMAGES[:9], LABELS[:9])}
    done = ur.prune(source=Pairs(), **fields)
    assert (tmp_path / "run-source" / "prepared.json").exists() and (tmp_path / "run-test").is_dir()
    again = ur.prune(source=Pairs(), **fields)
    assert again.manifest.created == done.manifest.created
    assert again.coreset.ids.tolist() == done.coreset.ids.tolist()
    subset = ur.torch_subset(ur.load(tmp_path / "run"))
    assert np.array_equal(np.asarray(subset[0][0]), IMAGES[done.coreset.ids[0]])
