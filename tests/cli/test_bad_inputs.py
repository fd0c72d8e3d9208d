"""Everything that can be wrong with a configuration or a data file: one message, an exit code, nothing trained."""

from __future__ import annotations

import json
import re
import resource
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import class_pixels, png_bytes, write_parquet
from unseen_ray.cli import main

COUNT, CLASSES, SIZE_PX = 40, 4, 8
LABELS = np.arange(COUNT) % CLASSES
FAST = "--executor local --recipe.epochs 1 --recipe.min_steps 0"
HERE = __name__


class Samples:
    """A source of a user's own, right or wrong as asked."""

    def __init__(self, dtype: Any = np.uint8) -> None:
        self.labels, self.keys = LABELS, [f"s{number}" for number in range(COUNT)]
        self._dtype = dtype

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, number: int) -> np.ndarray:
        return np.zeros((SIZE_PX, SIZE_PX, 3), self._dtype)


def good_source(*, count: int = COUNT) -> Samples:
    return Samples()


def list_source() -> list[int]:
    return [1, 2, 3]


def float_source() -> Samples:
    return Samples(np.float32)


def user_score(log_probs_NC: Any, labels_N: Any, *, power: float = 1.0) -> Any:
    return log_probs_NC.max(axis=1) ** power


not_a_function = 7


def images(labels: Any = LABELS) -> list[bytes]:
    return [png_bytes(pixels) for pixels in class_pixels(np.asarray(labels, int), SIZE_PX)]


def parquet(labels: Any = LABELS, **columns: Any) -> Callable[[Path], Path]:
    return lambda tmp: write_parquet(tmp / "data.parquet", np.asarray(labels), images(range(len(labels))), **columns)


def table(image: Any = None, label: Any = None, **columns: Any) -> Callable[[Path], Path]:
    made = {
        "image": pa.array(images()) if image is None else image,
        "label": pa.array(LABELS) if label is None else label,
    }

    def write(tmp: Path) -> Path:
        pq.write_table(pa.table({k: v for k, v in {**made, **columns}.items() if v is not False}), tmp / "data.parquet")
        return tmp / "data.parquet"

    return write


def with_bad_image(data: bytes, row: int = 17) -> Callable[[Path], Path]:
    def write(tmp: Path) -> Path:
        all_images = images()
        all_images[row] = data
        return write_parquet(tmp / "data.parquet", LABELS, all_images)

    return write


def file(name: str, data: bytes) -> Callable[[Path], Path]:
    def write(tmp: Path) -> Path:
        (tmp / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp / name).write_bytes(data)
        return tmp / name

    return write


def folder(*names: str) -> Callable[[Path], Path]:
    def write(tmp: Path) -> Path:
        (tmp / "tree").mkdir()
        for name, data in zip(names, images(), strict=False):
            file(f"tree/{name}", data)(tmp)
        return tmp / "tree"

    return write


def more_classes(tmp: Path) -> Path:
    return write_parquet(tmp / "test.parquet", LABELS + 3, images())


TREE = [f"{name}/{place}.png" for name in ("cat", "dog") for place in range(8)]

MADE: dict[str, Callable[[Path], Path]] = {
    "good": parquet(),
    "tiny": parquet(np.arange(6) % 2),
    "one": parquet(np.zeros(1, int)),
    "negative": parquet(np.where(np.arange(COUNT) == 7, -1, LABELS)),
    "no-parquet": file("data.parquet", b"label,image\n1,2\n" * 40),
    "no-image": table(image=False, photo=pa.array(images())),
    "image-text": table(image=pa.array([f"{number}.png" for number in range(COUNT)])),
    "image-path": table(image=pa.array([{"bytes": None, "path": "nosuch/x.png"}] * COUNT,
                                       pa.struct([("bytes", pa.binary()), ("path", pa.string())]))),
    "undecodable": with_bad_image(b"no image at all"),
    "all-undecodable": table(image=pa.array([b"no image"] * COUNT)),
    "empty-folder": folder(),
    "splits": folder(*[f"{split}/{name}" for split in ("train", "val") for name in TREE]),
    "bad-tree": lambda tmp: file("tree/cat/bad.png", b"no image")(tmp).parents[1] if folder(*TREE)(tmp) else tmp,
    "csv": file("data.csv", b"image,label\n"),
    "more-classes": more_classes,
    "other-files": lambda tmp: file("taken/notes.txt", b"mine")(tmp).parent,
    "out-file": file("out-file", b"a file"),
    "yaml-broken": file("run.yaml", b"keep: [0.5\nsource: {digits\n"),
    "yaml-object": file("run.yaml", b"source: !!python/object/apply:os.system ['touch executed']\nkeep: 0.5\n"),
    "yaml-empty": file("run.yaml", b"# nothing yet\n"),
    "yaml-recipe-list": file("run.yaml", b"source: digits\nkeep: 0.5\nrecipe: [quick]\n"),
}  # fmt: skip


def changed_manifest(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(run: Path) -> None:
        values = json.loads((run / "manifest.json").read_text())
        del values["sha256"]
        change(values)
        (run / "manifest.json").write_text(json.dumps(values))
        (run / "manifest.copy.json").unlink()

    return apply


def raw_manifest(data: bytes) -> Callable[[Path], None]:
    def apply(run: Path) -> None:
        for name in ("manifest.json", "manifest.copy.json"):
            (run / name).write_bytes(data)

    return apply


RUNS: dict[str, Callable[[Path], Any]] = {
    "run": lambda run: None,
    "unfinished": changed_manifest(lambda values: values.update(finished=False)),
    "newer": changed_manifest(lambda values: values.update(schema_version=99, warp={"drive": 1})),
    "newer-renamed": raw_manifest(b'{"schema_version": 99, "run": {}}\n'),
    "damaged": raw_manifest(b'{"schema_version": 1, "created'),
    "manifest-list": raw_manifest(b"[1, 2]\n"),
    "manifest-gaps": raw_manifest(b'{"schema_version": 1}\n'),
    "manifest-binary": raw_manifest(b"\xff\xfe\x00"),
    "manifest-empty": raw_manifest(b""),
    "manifest-types": changed_manifest(lambda values: values.update(stages=None, asked=[], source=3)),
}


def prune(source: str, more: str = "") -> str:
    return f"prune --source @{source} --keep 0.5 --out @new {FAST} {more}"


def fields(more: str) -> str:
    return prune("good", more)


def of(source: str) -> str:
    return f"prune --source {source} --keep 0.5 --out @new {FAST}"


def chosen(more: str, run: str = "run") -> str:
    return f"select @{run} --keep 0.5 --out @new {more}"


def measured(more: str) -> str:
    return f"evaluate @run --seeds 1 {FAST} {more}"


CASES: list[tuple[str, str, int, str]] = [
    # the command line
    ("unknown command", "prnue", 2, r"there is no command 'prnue'. Did you mean 'prune'\? `unseen-ray --help` lists the commands"),
    ("unknown flag", fields("--flods 3"), 2, r"prune has no option --flods\. Did you mean '--folds'\? `unseen-ray prune --help`"),
    ("unknown nested flag", fields("--recipe.epoch 3"), 2, r"no option --recipe\.epoch\. Did you mean '--recipe.epochs'"),
    ("flag without value", "prune --source @good --keep", 2, r"--keep needs a value"),
    ("nested flag without value", "prune --source.limit", 2, r"--source\.limit needs a value"),
    ("two yaml files", "prune @yaml-empty @yaml-empty", 2, r"unexpected argument"),
    ("list of nothing known", "list things", 2, r"'things' is not one of"),
    ("export without to", "export @run", 2, r"--to is missing \(\.npy: ids"),
    ("seeds that are no number", "evaluate @run --seeds three", 2, r"'three' is not a valid integer"),
    # YAML files
    ("yaml missing", "prune nosuch.yaml", 2, r"nosuch\.yaml does not exist\. Give the path of a YAML file"),
    ("yaml broken", "prune @yaml-broken", 2, r"run\.yaml is not valid YAML: .*line"),
    ("yaml object", "prune @yaml-object --out @new", 2, r"run\.yaml is not valid YAML"),
    ("yaml empty", "prune @yaml-empty", 2, r"2 problems:[\s\S]*source is missing[\s\S]*keep is missing"),
    ("yaml recipe list", "prune @yaml-recipe-list --out @new --recipe.epochs 3", 2, r"recipe"),
    ("flag impossible date", fields("--combine 2024-13-45"), 2, r"combine"),
    # fields
    ("keep in percent", fields("--keep 70"), 2, r"keep=70.* is outside \(0, 1\).*30 % pruning is keep: 0\.7"),
    ("keep nan", fields("--keep .nan"), 2, r"keep=nan is outside"),
    ("folds false", fields("--folds false"), 2, r"folds=False is not allowed"),
    ("more folds than samples", fields("--folds 41"), 2, r"folds=41 is outside 2\.\.40 \(the number of samples\)"),
    ("folds of one sample", fields("--folds 21"), 2, r"folds=21 of 40 samples leaves a fold of 1 to train on"),
    ("one sample", prune("one"), 2, r"keep|folds"),
    ("first stage of one sample", fields("--schedule [0.02,0.5]"), 2, r"the first stage keeps 1 sample"),
    ("schedule field", fields("--schedule.frist 0.2 --schedule.stages 2"),
     2, r"no field 'frist'.*Did you mean 'first'"),
    ("targets coincide", prune("tiny", "--folds 2 --schedule [0.45,0.5]"),
     2, r"stage 1 of the schedule would add nothing"),
    ("nothing pruned", prune("tiny", "--folds 2 --keep 0.99"), 2, r"the targets \[6\] must lie within 1\.\.5"),
    ("nothing kept", prune("tiny", "--folds 2 --keep 0.01"), 2, r"the targets \[0\] must lie within 1\.\.5"),
    ("unknown score", fields("--score entrop"), 2, r"score='entrop' is not a score.*Did you mean 'entropy'"),
    ("unknown source", of("cifra10"), 2, r"source='cifra10' is not a source"),
    ("epochs and steps", fields("--recipe.steps 9"), 2, r"recipe sets epochs=1 and steps=9"),
    # what is plugged in
    ("score module missing", fields("--score nosuch_lab.scores:gini"),
     2, r"no module 'nosuch_lab\.scores' on the Python path"),
    ("score function missing", fields(f"--score {HERE}:user_scor"),
     2, r"has no 'user_scor'\. Did you mean 'user_score'"),
    ("score no function", fields(f"--score {HERE}:not_a_function"), 2, r"not_a_function is of type int, not a function"),
    ("score option", fields(f"--score.use {HERE}:user_score --score.powr 2"), 2, r"takes no option 'powr'.*'power'"),
    ("built-in score option", fields("--score.use entropy --score.temperature 2"), 2, r"takes no option 'temperature'"),
    ("score option that is its data", fields("--score.use entropy --score.labels_N 2"),
     2, r"takes no option 'labels_N'"),
    ("policy module missing", fields("--policy nosuch_lab:best"), 2, r"no module 'nosuch_lab'"),
    ("policy function missing", fields("--policy json:bests"), 2, r"module json has no 'bests'"),
    ("policy option", fields("--policy.use top --policy.skip 0.1"), 2, r"policy: top takes no option 'skip'"),
    ("policy option that is its data", fields("--policy.use top --policy.budget 3"), 2, r"takes no option 'budget'"),
    ("policy option that is the run's", fields("--policy.use top --policy.seed 3"), 2, r"takes no option 'seed'"),
    ("model module missing", fields("--model nosuch_lab.models:net"), 2, r"no module 'nosuch_lab\.models'"),
    ("model function missing", fields("--model torchvision.models:resnet19"),
     2, r"has no 'resnet19'\. Did you mean 'resnet1"),
    ("model option", fields("--model.use small_cnn --model.widht 8"),
     2, r"takes no option 'widht'.*Did you mean 'width'"),
    ("model option that is the run's", fields("--model.use small_cnn --model.num_classes 8"), 2, r"num_classes"),
    ("model no module", fields(f"--model {HERE}:list_model"),
     2, r"returned a list; it must return a torch\.nn\.Module"),
    ("fit module missing", "prune --source @good --keep 0.5 --out @new --fit nosuch_lab:fit --executor local",
     2, r"no module 'nosuch_lab'"),
    ("source module missing", of("nosuch_lab.data:pets"), 2, r"no module 'nosuch_lab\.data'"),
    ("source function missing", of(f"{HERE}:good_sourc"), 2, r"Did you mean 'good_source'"),
    ("source no function", of(f"{HERE}:not_a_function"), 2, r"not_a_function"),
    ("source of the wrong object", of(f"{HERE}:list_source"), 2, r"returned a list without labels, keys"),
    ("source of the wrong pixels", of(f"{HERE}:float_source"), 3, r"sample s0 .* is float32 .*; it must be uint8"),
    ("source function option", of(f"{HERE}:good_source --source.cout 3"), 2, r"Did you mean 'count'"),
    ("source option", fields("--source.lable y"), 2, r"takes no option 'lable'.*Did you mean 'label'"),
    ("unknown scheme", of("foo://bucket/set"), 2, r"foo://bucket/set cannot be opened"),
    ("out of unknown scheme", f"prune --source @good --keep 0.5 --out foo://bucket/run {FAST}",
     2, r"foo://bucket/run.* cannot be opened"),
    # data
    ("negative label", prune("negative"), 3, r"row 7 of .* has label -1; labels are 0 to C - 1"),
    ("missing file", of("nosuch.parquet"), 3, r"nosuch\.parquet does not exist"),
    ("missing folder", f"prune --source ./nosuch/ --keep 0.5 --out @new {FAST}", 3, r"nosuch/ does not exist"),
    ("no cifar under root", of("cifar10"), 3, r"data_batch_1 is missing\. Set `root`"),
    ("no imagenet under root", of("imagenet"), 3, r"data/train cannot be listed"),
    ("no parquet", prune("no-parquet"), 3, r"data\.parquet of source .* is not a Parquet file"),
    ("csv", prune("csv"), 3, r"column 'image' of data\.csv is null; it must hold"),
    ("no image column", prune("no-image"), 3, r"has no image column \(image or img\); it has label, photo"),
    ("image column of text", prune("image-text"),
     3, r"data\.parquet:0 names the file 0\.png, which cannot be read"),
    ("image named, not there", prune("image-path"),
     3, r"data\.parquet:0 names the file nosuch/x\.png, which cannot be read"),
    ("undecodable image", prune("undecodable"), 3, r"sample data\.parquet:17 cannot be decoded: .*on_bad_sample: skip"),
    ("nothing left of skipping", prune("all-undecodable", "--on_bad_sample skip"),
     2, r"0 samples|outside 2\.\.0|N is 0"),
    ("undecodable in a tree", prune("bad-tree"), 3, r"sample cat/bad\.png cannot be decoded"),
    ("empty folder", prune("empty-folder"), 3, r"holds no images in class folders|matches no Parquet file"),
    ("folder of splits", prune("splits"), 3, r"holds the splits train, val, not classes\. Set source: .*/tree/train"),
    ("test with more classes", fields("--test @more-classes"), 3, r"test .* has label 6, but the source has 4 classes"),
    ("test missing", fields("--test nosuch.parquet"), 3, r"nosuch\.parquet does not exist"),
    ("unknown test", fields("--test cifra10"), 2, r"test='cifra10' is not a source"),
    # where the run goes
    ("out missing", f"prune --source @good --keep 0.5 {FAST}", 2, r"out is missing: name the folder"),
    ("out holds other files", fields("--out @other-files"), 2, r"taken holds notes\.txt and is not a run"),
    ("out is a file", fields("--out @out-file"), 2, r"out-file.* cannot be"),
    ("out below a file", fields("--out @out-file/run"), 2, r"out-file/run.* cannot be"),
    ("out of another seed", fields("--out @run --also_score none --seed 1"),
     2, r"it differs in .*seed: 0 there, 1 here"),
    ("out of a damaged run", fields("--out @damaged"), 2, r"manifest\.json is damaged"),
    ("out of a newer run", fields("--out @newer"), 2, r"schema_version 99; this unseen_ray reads up to 1"),
    # what reads a run
    *[
        (f"{command} of {name}", f"{line}", 2, message)
        for command, form in (
            ("export", "export {run} --to @new.npy"),
            ("select", "select {run} --keep 0.5 --out @new"),
            ("evaluate", f"evaluate {{run}} --seeds 1 --test @good {FAST}"),
        )
        for name, run, message in (
            ("no folder", "nosuch", r"nosuch holds no manifest\.json: it is not a run folder"),
            ("another folder", "@other-files", r"taken holds no manifest\.json"),
            ("a file", "@out-file", r"out-file holds no manifest\.json"),
            ("an unfinished run", "@unfinished", r"has not finished: stages so far.*Run the same `unseen-ray prune` line again first"),
            ("a newer run", "@newer", r"has schema_version 99; this unseen_ray reads up to 1\. Upgrade"),
            ("a damaged run", "@damaged", r"manifest\.json is damaged: "),
        )
        for line in (form.format(run=run),)
    ],
    *[
        (f"export of {name}", f"export @{name.replace(' ', '-')} --to @new.npy", 2, message)
        for name, message in (
            ("newer renamed", r"has schema_version 99; this unseen_ray reads up to 1"),
            *((f"manifest {kind}", r"manifest\.json is damaged: ") for kind in ("list", "gaps", "binary", "empty")),
        )
    ],
    ("select of a manifest of wrong types", chosen("", "manifest-types"), 2, r"manifest\.json is damaged"),
    ("export with an unknown ending", "export @run --to @new.jsn", 2, r"ends in '\.jsn'\. Allowed are \.npy"),
    ("export into the run folder", "export @run --to @run", 2, r"holds coreset\.parquet, .* Name a new or empty folder"),
    ("export below a file", "export @run --to @out-file/kept.npy", 2, r"kept\.npy cannot be written"),
    ("select without keep and out", "select @run", 2, r"2 problems:[\s\S]*--keep is missing[\s\S]*--out is missing"),
    ("select of everything", "select @run --keep 1 --out @new", 2, r"keep=1.* is outside \(0, 1\)"),
    ("select of nothing", "select @run --keep 0.001 --out @new",
     2, r"keep=0\.001 of 40 samples is 0 samples; a coreset has 1 to 39"),
    ("select by text", "select @run --keep half --out @new", 2, r"keep='half' is not allowed"),
    ("select by an unknown score", chosen("--score entrop"), 2, r"score='entrop' is not a score"),
    ("select by a score not stored", chosen("--score margin"), 2, r"'margin' is not stored in .*; stored are entropy"),
    ("select by an unknown policy", chosen("--policy topp"), 2, r"policy='topp' is not a policy"),
    ("select by a policy option", chosen("--policy.use top --policy.skip 1"), 2, r"takes no option 'skip'"),
    ("select by an unknown rule", chosen("--combine median"), 2, r"combine='median' is not allowed"),
    ("select by mean_prob", chosen("--combine mean_prob"),
     2, r"needs the mean probabilities.*Prune in a new folder with save_probs: true"),
    ("select into the run", "select @run --keep 0.5 --out @run",
     2, r"holds coreset\.parquet, .*Name a new or empty folder"),
    ("select into other files", "select @run --keep 0.5 --out @other-files", 2, r"taken holds notes\.txt"),
    ("select into a file", "select @run --keep 0.5 --out @out-file", 2, r"out-file.* cannot be"),
    ("select of an unknown flag", "select @run --keep 0.5 --out @new --folds 3", 2, r"select has no option --folds"),
    ("evaluate on nothing", measured(""), 2, r"nothing to measure on: .*--test SOURCE .*holdout: 0\.2"),
    ("evaluate with no seed", measured("--seeds 0 --test @good"), 2, r"seeds=0 must be 1 or more"),
    ("evaluate on more classes", measured("--test @more-classes"), 3, r"has label 6, but the source has 4 classes"),
    ("evaluate on an unknown source", measured("--test cifra10"), 2, r"test='cifra10' is not a source"),
    ("evaluate on undecodable images", measured("--test @undecodable"),
     3, r"sample data\.parquet:17 cannot be decoded"),
    ("evaluate an unknown model", measured("--test @good --model resnet8"), 2, r"model='resnet8' is not a model"),
    ("evaluate an unknown field", f"evaluate @run --test @good --keep 0.3 {FAST}", 2, r"evaluate has no option --keep"),
    ("plan of a negative label", "plan --source @negative --keep 0.5", 3, r"has label -1"),
    ("plan with coinciding targets", "plan --source @tiny --keep 0.5 --folds 2 --schedule [0.45,0.5]",
     2, r"would add nothing"),
]  # fmt: skip


def list_model(num_classes: int) -> list[int]:
    return [num_classes]


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 40 images with one stored score, and its data beside it."""
    root = tmp_path_factory.mktemp("finished")
    data = parquet()(root)
    main(shlex.split(f"prune --source {data} --keep 0.5 --out {root / 'run'} --also_score none {FAST}"))
    return root / "run"


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each case starts in a folder of its own."""
    monkeypatch.chdir(tmp_path)


def argv_of(line: str, tmp: Path, finished_run: Path) -> list[str]:
    """The line's words, with `@name` made into the path of what it names."""
    made: dict[str, str] = {"new": str(tmp / "new")}

    def path_of(match: re.Match[str]) -> str:
        name = match[1]
        if name in RUNS and name not in made:
            shutil.copytree(finished_run, tmp / "runs" / name)
            RUNS[name](tmp / "runs" / name)
            made[name] = str(tmp / "runs" / name)
        elif name not in made:
            made[name] = str(MADE[name](tmp))
        return made[name]

    return [re.sub(r"@([a-z0-9-]+)", path_of, word) for word in shlex.split(line)]


def results_under(root: Path) -> dict[str, int]:
    """Files that training, selecting or exporting leaves, with their times."""
    made = [
        p for p in root.rglob("*") if "stage-" in str(p) or p.name.startswith(("coreset", "evaluation", "new", "kept"))
    ]
    return {str(path): path.stat().st_mtime_ns for path in made if path.is_file()}


def exit_code(argv: list[str]) -> int:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.parametrize(
    ("line", "code", "message"), [pytest.param(*case[1:], id=case[0].replace(" ", "-")) for case in CASES]
)
def test_bad_input_is_told_and_nothing_is_trained(
    line: str, code: int, message: str, tmp_path: Path, finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = argv_of(line, tmp_path, finished_run)
    before = results_under(tmp_path)
    capsys.readouterr()
    ended = exit_code(argv)
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err, err
    assert re.search(message, err), err
    assert ended == code, err
    assert out == ""
    assert "this is a bug" not in err
    assert results_under(tmp_path) == before
    assert not (tmp_path / "executed").exists()


def test_the_names_of_the_cases_are_distinct() -> None:
    assert len({case[0] for case in CASES}) == len(CASES) > 100


def test_data_that_changed_under_a_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = parquet()(tmp_path)
    argv = shlex.split(f"prune --source {data} --keep 0.5 --out {tmp_path / 'run'} {FAST}")
    main(argv)
    before = results_under(tmp_path)
    write_parquet(data, (LABELS + 1) % CLASSES, images())
    capsys.readouterr()
    assert exit_code(argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" not in err
    assert re.search(r"differs in the data itself \(labels, names or pixels\)\. Name a new folder", err)
    assert results_under(tmp_path) == before


@pytest.mark.parametrize(
    ("made", "wrong", "right"),
    [
        ("undecodable", "", "--on_bad_sample skip"),
        ("good", "--model.use small_cnn --model.widht 8", "--model.use small_cnn --model.width 8"),
        ("good", "--model torchvision.models:resnet19", "--model small_cnn"),
    ],
    ids=["bad sample", "model option", "model function"],
)
def test_the_line_goes_through_in_the_same_folder_once_it_is_put_right(
    made: str, wrong: str, right: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = f"prune --source {MADE[made](tmp_path)} --keep 0.5 --out {tmp_path / 'run'} {FAST}"
    assert exit_code(shlex.split(f"{line} {wrong}")) in (2, 3)
    capsys.readouterr()
    try:
        main(shlex.split(f"{line} {right}"))
    except SystemExit as ended:
        pytest.fail(f"exit {ended.code}: {capsys.readouterr().err}")
    assert (tmp_path / "run" / "coreset.parquet").exists()


def test_evaluate_refuses_data_that_is_no_longer_the_run_s(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = parquet()(tmp_path)
    main(shlex.split(f"prune --source {data} --keep 0.5 --out {tmp_path / 'run'} {FAST}"))
    for rows in (12, COUNT, COUNT + 8):
        parquet((np.arange(rows) + 1) % CLASSES)(tmp_path)
        capsys.readouterr()
        assert exit_code(shlex.split(f"evaluate {tmp_path / 'run'} --seeds 1 --test {data} {FAST}")) in (2, 3)
        out, err = capsys.readouterr()
        assert out == "" and "Traceback" not in err
        assert re.search(r"the data|fingerprint", err)
        assert not (tmp_path / "run" / "evaluation.json").exists()


def test_a_run_is_selected_from_wherever_one_stands_and_without_its_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parquet()(tmp_path / "pictures")
    main(shlex.split(f"prune --source pictures --keep 0.5 --out run {FAST}"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "pictures")
    capsys.readouterr()
    try:
        main(shlex.split("select ../run --keep 0.3 --out chosen"))
    except SystemExit as ended:
        pytest.fail(f"exit {ended.code}: {capsys.readouterr().err}")
    assert pq.read_table("chosen/coreset.parquet").num_rows == 12


@pytest.mark.parametrize("name", ["2026-10-17", "1e3", "null"])
def test_a_folder_may_be_called_what_yaml_would_read_as_something_else(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = parquet()(tmp_path)
    try:
        main(shlex.split(f"prune --source {data} --keep 0.5 --out {name} {FAST}"))
    except SystemExit as ended:
        pytest.fail(f"exit {ended.code}: {capsys.readouterr().err}")
    assert (tmp_path / name / "coreset.parquet").exists()


def test_an_unreadable_sample_may_be_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = with_bad_image(b"no image at all")(tmp_path)
    main(shlex.split(f"prune --source {data} --keep 0.5 --out {tmp_path / 'run'} --on_bad_sample skip {FAST}"))
    assert re.search(r"skipped data\.parquet:17: ", capsys.readouterr().err)
    kept = pq.read_table(tmp_path / "run" / "coreset.parquet").column("id").to_pylist()
    assert len(kept) == round(0.5 * 39) and 17 not in kept


def test_a_limit_of_memory_too_low_for_torch_is_named(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "unseen_ray",
            *shlex.split(f"prune --source digits --keep 0.5 --out {tmp_path / 'run'}"),
        ],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (13 * 10**8, 13 * 10**8)),
    )
    assert done.returncode == 4, done.stderr
    assert done.stderr.startswith("error: this process may use no more memory: ") and len(done.stderr.splitlines()) == 1


def test_a_limit_of_open_files_too_low_for_python_is_named(tmp_path: Path) -> None:
    script = "import resource, sys; from unseen_ray.cli import main; resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3)); main(sys.argv[1:])"
    line = shlex.split(f"prune --source digits --keep 0.5 --out {tmp_path / 'run'}")
    done = subprocess.run([sys.executable, "-c", script, *line], capture_output=True, text=True)
    assert done.returncode == 4, done.stderr
    assert re.fullmatch(
        r"error: this process may open no more files: .* Raise the limit of open files \(`ulimit -n`\); the same line .*\n",
        done.stderr,
    )
