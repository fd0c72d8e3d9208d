"""Each command as a person types it: what it answers on stdout, what it leaves behind."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import unseen_ray as ur
from unseen_ray.cli import main

SOURCE = ["--source", "digits", "--source.limit", "300"]
QUICK = ["--recipe.epochs", "3", "--recipe.min_steps", "0", "--executor", "local"]
GROWN = ["prune", *SOURCE, "--keep", "0.6", "--schedule", "[0.4,0.5,0.6]", "--holdout", "0.2", *QUICK, "--out"]


def answer(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    main(list(args))
    return capsys.readouterr().out


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three stages with a holdout."""
    out = tmp_path_factory.mktemp("runs") / "digits"
    main([*GROWN, str(out)])
    return out


def test_plan_says_the_sizes_and_starts_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "never"
    text = answer(capsys, "plan", *SOURCE, "--keep", "0.7", "--folds", "3", "--images_per_s", "1000", "--out", str(out))
    assert "300 samples of 10 classes, images of 8 px" in text
    assert "small_cnn (chosen by the image size)" in text
    assert "of worker time" in text
    lines = [line for line in text.splitlines() if line]
    assert len(set(lines)) == len(lines)
    assert not out.exists()


@pytest.mark.parametrize("flag", ["--train_on", "--train-on"])
def test_dashes_and_underscores_are_one(capsys: pytest.CaptureFixture[str], flag: str) -> None:
    plan = json.loads(answer(capsys, "plan", *SOURCE, "--keep", "0.5", "--folds", "3", flag, "complement", "--json"))
    (tasks,) = plan["stages"][0]["tasks"]
    assert tasks == {
        "models": 3, "train_on": 200, "score": 100, "scoring_passes": 1, "steps": 75, "batch_size": 64
    }  # fmt: skip


def test_a_flag_overrides_the_yaml_which_overrides_the_default(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "run.yaml").write_text(
        "source: digits\nkeep: 0.5\nfolds: 5\nrecipe: {use: quick, epochs: 7, batch_size: 32}\n"
    )
    plan = json.loads(
        answer(capsys, "plan", str(tmp_path / "run.yaml"), "--recipe.epochs", "9", "--source.limit", "100", "--json")
    )
    assert plan["num_samples"] == 100
    assert plan["stages"][0]["tasks"][0]["models"] == 5
    assert (plan["recipe"]["epochs"], plan["recipe"]["batch_size"], plan["recipe"]["lr"]) == (9, 32, 0.1)


def test_prune_leaves_a_run_folder(finished: Path) -> None:
    manifest = json.loads((finished / "manifest.json").read_text())
    table = pq.read_table(finished / "coreset.parquet")
    assert manifest["schema_version"] == 1
    assert manifest["source"]["num_samples"] == 300 - manifest["source"]["holdout"]
    assert table.num_rows == round(0.6 * manifest["source"]["num_samples"])
    assert np.bincount(table.column("stage")).tolist() == [s["added"] for s in manifest["stages"]]
    assert {"environment", "cost", "files", "config"} <= manifest.keys()
    assert manifest["config"]["model"] == "small_cnn"
    assert manifest["config"]["recipe"]["precision"] != "auto"
    from unseen_ray.storage.filesystem import sha256_of

    assert all(sha256_of((finished / name).read_bytes()) == digest for name, digest in manifest["files"].items())
    on_disk = {str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file()}
    written = {name for name in on_disk if not name.startswith("tensorboard/")}
    assert written - {"evaluation.json"} == {*manifest["files"], "manifest.json", "manifest.copy.json"}


def test_scores_have_a_row_a_candidate(finished: Path) -> None:
    table = pq.read_table(finished / "stage-00" / "scores.parquet")
    names = ["entropy", "el2n", "grand", "label_margin", "least_confidence", "loss", "margin"]
    assert table.schema.names == ["id", "label", "votes", "pred", "p_label", *names, *(f"std_{name}" for name in names)]
    assert [str(kind) for kind in table.schema.types[:5]] == ["int64", "int64", "int32", "int64", "float"]
    assert set(table.column("votes").to_pylist()) == {3}
    later = pq.read_table(finished / "stage-01" / "scores.parquet")
    assert later.num_rows == table.num_rows - round(0.4 * table.num_rows)
    assert not set(later.column("std_entropy").to_pylist()) - {0.0}


def test_running_the_line_again_does_nothing(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (finished / "manifest.json").read_bytes()
    assert "Kept" in answer(capsys, *GROWN, str(finished))
    assert (finished / "manifest.json").read_bytes() == before


def test_select_chooses_again(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "half"
    line = ["select", str(finished), "--keep", "0.5", "--score", "margin", "--policy", "top", "--out", str(out)]
    text = answer(capsys, *line)
    chosen = pq.read_table(out / "coreset.parquet")
    scores = pq.read_table(finished / "stage-00" / "scores.parquet")
    assert chosen.num_rows == round(0.5 * scores.num_rows)
    dropped = set(scores.column("id").to_pylist()) - set(chosen.column("id").to_pylist())
    margin = dict(zip(scores.column("id").to_pylist(), scores.column("margin").to_pylist(), strict=True))
    assert min(chosen.column("score").to_pylist()) >= max(margin[number] for number in dropped)
    assert f"Kept {chosen.num_rows}" in text


def test_evaluate_measures_on_the_holdout_and_resumes(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["evaluate", str(finished), "--seeds", "2", "--executor", "local", "--json"]
    table = json.loads(answer(capsys, *line))
    sizes = {arm["name"]: arm["samples"] for arm in table["arms"]}
    manifest = json.loads((finished / "manifest.json").read_text())
    total = manifest["source"]["num_samples"]
    assert sizes == {"coreset": round(0.6 * total), "random": round(0.6 * total), "full": total}
    assert table["test_samples"] == manifest["source"]["holdout"]
    assert all(len(arm["accuracies"]) == 2 and 0 <= arm["mean"] <= 1 for arm in table["arms"])
    again = json.loads(answer(capsys, *line))
    assert again == table  # seconds and all: nothing was trained again
    more = json.loads(answer(capsys, *line, "--against", "random,fitting"))
    assert [arm["name"] for arm in more["arms"]] == ["coreset", "random", "fitting"]
    assert more["arms"][0] == table["arms"][0]
    assert (finished / "fitting" / "coreset.parquet").exists()


def test_export_writes_each_form(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = pq.read_table(finished / "coreset.parquet")
    for ending in ("npy", "txt", "csv", "parquet"):
        assert f"Wrote {kept.num_rows} samples" in answer(
            capsys, "export", str(finished), "--to", str(tmp_path / f"kept.{ending}")
        )
    assert np.load(tmp_path / "kept.npy").tolist() == kept.column("id").to_pylist()
    answer(capsys, "export", str(finished), "--to", str(tmp_path / "weights.npy"), "--as", "weights")
    assert np.flatnonzero(np.load(tmp_path / "weights.npy")).tolist() == kept.column("id").to_pylist()
    answer(capsys, "export", str(finished), "--to", str(tmp_path / "sampler.json"))
    assert list(ur.KeptSampler(tmp_path / "sampler.json")) == list(ur.KeptSampler(finished))
    assert (tmp_path / "kept.txt").read_text().splitlines() == kept.column("key").to_pylist()
    assert pq.read_table(tmp_path / "kept.parquet") == kept
    with (tmp_path / "kept.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["id"]) for row in rows] == kept.column("id").to_pylist()
    assert list(rows[0]) == ["id", "key", "label", "stage", "score"]


@pytest.mark.parametrize(
    ("what", "names"),
    [
        (
            "scores",
            {
                "entropy",
                "margin",
                "least_confidence",
                "loss",
                "el2n",
                "label_margin",
                "grand",
                "tdds",
                "forgetting",
                "aum",
            },
        ),
        (
            "policies",
            {"top", "class_balanced", "random", "ccs", "window", "moderate", "beta", "class_floor", "class_quota"},
        ),
        ("guards", {"aum", "confident_learning", "label_margin", "prune_by_noise_rate"}),
        ("sources", {"digits", "cifar10", "cifar100", "imagenet", "parquet", "folder"}),
        ("models", {"small_cnn", "resnet9", "resnet18_cifar"}),
        ("recipes", {"quick"}),
    ],
)
def test_list_has_a_line_on_each(capsys: pytest.CaptureFixture[str], what: str, names: set[str]) -> None:
    lines = answer(capsys, "list", what).splitlines()
    assert names <= {line.split()[0] for line in lines}
    assert all(len(line.split()) > 2 for line in lines)


@pytest.mark.parametrize("command", ["plan", "prune", "select", "evaluate", "export", "list"])
def test_help_shows_fields_with_their_defaults(capsys: pytest.CaptureFixture[str], command: str) -> None:
    text = " ".join(answer(capsys, command, "--help").split())
    assert "Usage: unseen-ray" in text
    if command == "prune":
        assert "--folds INT K, the number of folds, from 2 to N [default: 4]" in text
        assert "--recipe.batch_size INT" in text


def test_prepare_packs_a_source_that_prune_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["prepare", "digits", "--source.limit", "300", "--size", "8", "--as", "raw", "--out", str(tmp_path / "raw")]
    text = answer(capsys, *line)
    assert "Prepared 300 samples of 10 classes of digits as raw of 8 px: 1 file, 0.1 MB" in text
    assert f"unseen-ray prune --source {tmp_path / 'raw'} --source.size 8 --keep 0.7" in text
    values = json.loads(answer(capsys, *line, "--workers", "1", "--json"))
    assert (values["shards_made"], values["samples_made"], values["bad"]) == (0, 0, [])
    assert values["bytes"] == (tmp_path / "raw" / "part-00000.parquet").stat().st_size
    plan = json.loads(answer(capsys, "plan", "--source", str(tmp_path / "raw"), "--keep", "0.7", "--json"))
    assert plan["num_samples"] == 300


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "source is missing: name what to pack.*out is missing: name a new folder"),
        (["digits", "--source", "digits", "--out", "x"], "SOURCE digits and --source digits are two sources"),
        (["digits", "--out", "x", "--as", "ppm"], "as='ppm' is none of jpeg .*, raw "),
        (["digits", "--out", "x", "--size", "0", "--quality", "0"], "size=0 must be .*quality=0 must be"),
    ],
)
def test_prepare_says_what_it_cannot_do(
    args: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["prepare", *args])
    assert ended.value.code == 2
    assert re.search(message, capsys.readouterr().err, re.DOTALL)
    assert list(tmp_path.iterdir()) == []
