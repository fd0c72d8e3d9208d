"""Every fit is logged where a run asks for it, once an epoch, and a log that fails costs no training."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

import unseen_ray as ur
from unseen_ray.execution.tracking import BackgroundLogger
from unseen_ray.runs.layout import TENSORBOARD
from unseen_ray.runs.tasks import Progress

FIELDS = {
    "source": {"use": "digits", "limit": 300},
    "keep": 0.6,
    "folds": 2,
    "recipe": {"epochs": 3, "min_steps": 0},
    "scoring": {"share": 1},
    "executor": "local",
}
Curves = dict[str, dict[int, float]]


def curves_of(folder: Path) -> Curves:
    """What TensorBoard would show of a fit: values by step, those purged that a later file logs again."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    curves: Curves = defaultdict(dict)
    for file in sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns):
        data, at = file.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + length])
            at += 16 + length
            if event.session_log.status == SessionLog.START:
                for values in curves.values():
                    for step in [step for step in values if step >= event.step]:
                        del values[step]
            for value in event.summary.value:
                assert event.step not in curves[value.tag], "an epoch that is logged twice"
                curves[value.tag][event.step] = value.simple_value
    return curves


def test_every_fit_of_a_run_and_of_its_evaluation_is_in_tensorboard(tmp_path: Path) -> None:
    told: dict[str, dict[int, float]] = defaultdict(dict)

    def observe(event: object) -> None:
        if isinstance(event, Progress) and event.doing == "train" and event.done:
            told[event.task][event.done] = event.loss

    result = ur.prune(
        ur.PruneConfig(**FIELDS, schedule=[0.5, 0.6], holdout=0.2, out=tmp_path / "run"), on_event=observe
    )
    ur.evaluate(result, seeds=2, against=["random"], on_event=observe)
    folder = tmp_path / "run" / TENSORBOARD
    (evaluated,) = folder.glob("evaluate-epochs-*")  # apart from those of other recipes and budgets
    where = {task: (folder if task.startswith("stage") else evaluated) / task.replace(" ", "-") for task in told}
    assert {path for path in folder.rglob("*") if path.is_dir()} == {evaluated, *where.values()}
    assert len(told) == 2 + 1 + 2 * 2
    for task, losses in told.items():
        curves = curves_of(where[task])
        assert curves["train/loss"] == pytest.approx(losses)
        assert set(curves["train/images_per_s"]) == {1, 2, 3}
        (measured,) = [name for name in curves if name in ("score/accuracy", "test/accuracy")]
        assert measured.startswith("score" if task.startswith("stage") else "test")
        assert list(curves[measured]) == [3]
    assert TENSORBOARD not in {name.split("/")[0] for name in result.manifest.files}


def test_logs_reach_a_run_folder_that_is_a_uri_and_nothing_stays_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    aside = tmp_path / "aside"
    aside.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(aside))
    seen: set[str] = set()

    def look(event: object) -> None:
        seen.update(path.name for path in aside.glob("unseen-ray-*/*"))

    ur.prune(ur.PruneConfig(**FIELDS, log_to=["tensorboard", "wandb"], out=f"file://{tmp_path}/run"), on_event=look)
    assert seen == {"tensorboard", "wandb"}
    assert not list(aside.glob("unseen-ray-*"))
    for fold in range(2):
        curves = curves_of(tmp_path / "run" / TENSORBOARD / f"stage-0-fold-{fold}")
        assert set(curves["train/accuracy"]) == {1, 2, 3}


def test_an_interrupted_fit_is_one_curve(tmp_path: Path) -> None:
    def interrupt(event: object) -> None:
        if isinstance(event, Progress) and event.task == "stage 0 fold 1" and event.done == 2:
            raise KeyboardInterrupt

    config = ur.PruneConfig(**FIELDS, out=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        ur.prune(config, on_event=interrupt)
    ur.prune(config)
    folder = tmp_path / TENSORBOARD / "stage-0-fold-1"
    assert len(list(folder.iterdir())) == 2
    assert list(curves_of(folder)["train/loss"]) == [1, 2, 3]


def test_a_run_of_ones_own_training_logs_what_it_measured(tmp_path: Path) -> None:
    fields = {name: value for name, value in FIELDS.items() if name != "recipe"}
    ur.prune(ur.PruneConfig(**fields, fit="tests.plugs:centroids", out=tmp_path))
    curves = curves_of(tmp_path / TENSORBOARD / "stage-0-fold-0")
    assert sorted(curves) == ["score/accuracy", "seconds"]


def test_nothing_is_logged_where_none_is_asked_for(tmp_path: Path) -> None:
    ur.prune(ur.PruneConfig(**FIELDS, log_to="none", out=tmp_path))
    assert not (tmp_path / TENSORBOARD).exists()


def test_a_log_that_fails_is_named_and_costs_no_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def block(event: object) -> None:  # a file where the folder of the logs would be
        (tmp_path / TENSORBOARD).write_text("")

    result = ur.prune(ur.PruneConfig(**FIELDS, out=tmp_path), on_event=block)
    assert len(result.coreset.ids) == 180
    assert [record.message for record in caplog.records if "tensorboard stops logging this run" in record.message]


def test_mlflow_gets_each_fit_with_its_fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = f"file://{tmp_path}/mlruns"
    logged = {"use": "mlflow", "tracking_uri": uri, "experiment_name": "pruning"}
    ur.prune(ur.PruneConfig(**FIELDS, log_to=[logged], out=tmp_path / "run"))
    client = mlflow.MlflowClient(uri)
    (experiment,) = [one for one in client.search_experiments() if one.name == "pruning"]
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.data.params["task"] for run in runs) == ["stage 0 fold 0", "stage 0 fold 1"]
    for run in runs:
        assert run.info.status == "FINISHED"
        assert run.data.params["recipe.epochs"] == "3"
        steps = [point.step for point in client.get_metric_history(run.info.run_id, "train/loss")]
        assert steps == [1, 2, 3]
        assert 0 < run.data.metrics["score/accuracy"] <= 1


def test_wandb_gets_each_fit_and_leaves_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    key = "0123456789abcdef" * 2 + "01234567"
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", key)
    ur.prune(ur.PruneConfig(**FIELDS, log_to="wandb", out=tmp_path))
    runs = list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(runs) == 2
    told = b"".join(run.read_bytes() for run in runs)  # in blocks, at whose ends a name may be cut
    assert b"train/loss" in told
    assert b"score/accuracy" in told
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert not [path for path in files if key.encode() in path.read_bytes()]


def test_a_command_that_used_wandb_leaves_nothing_in_the_temporary_folder(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    code = "import os, wandb; assert os.listdir(os.environ['TMPDIR']); from unseen_ray.cli.app import entry; entry()"
    line = [sys.executable, "-c", code, "--version"]
    subprocess.run(line, env={**os.environ, "TMPDIR": str(tmp_path)}, check=True)
    assert list(tmp_path.iterdir()) == []


class Told:
    """A logger that does what it is made to do."""

    def __init__(self, do: Callable[[], None]) -> None:
        self.log_trial_start = self.log_trial_end = lambda **_: None
        self.calls = 0
        self._do = do

    def log_trial_result(self, **_: object) -> None:
        self.calls += 1
        self._do()


def fail() -> None:
    raise ConnectionError("https://me:hidden@host refused")


def test_a_logger_that_fails_is_told_no_more(caplog: pytest.LogCaptureFixture) -> None:
    told = Told(fail)
    background = BackgroundLogger("service", told)
    for _ in range(5):
        background.submit("log_trial_result", iteration=1)
    background.close()
    assert told.calls == 1
    assert [record.message for record in caplog.records] == [
        "service stops logging this run: ConnectionError: https://***@host refused"
    ]


def test_a_logger_that_hangs_holds_nobody_up(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unseen_ray.execution.tracking._END_S", 1.0)
    hangs, hanging = threading.Event(), threading.Event()
    background = BackgroundLogger("service", Told(lambda: hanging.set() or hangs.wait()))
    background.submit("log_trial_result", iteration=1)
    assert hanging.wait(10)
    began = time.monotonic()
    for _ in range(2000):
        background.submit("log_trial_result", iteration=1)
    assert time.monotonic() - began < 1
    assert "service stops logging this run: it does not keep up" in caplog.text
    began = time.monotonic()
    background.close()  # its queue is full, and nothing takes from it
    assert time.monotonic() - began < 1.5
    hangs.set()


@pytest.mark.parametrize("field", ["source", "test", "out", "reuse"])
def test_an_address_with_a_key_is_refused_and_not_repeated(field: str) -> None:
    given = {"source": "digits", "keep": 0.5, field: "s3://AKIA1:hidden@bucket/data"}
    with pytest.raises(ur.ConfigError, match=rf"{field} holds a key or a password") as caught:
        ur.PruneConfig(**given)
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("tensorbord", r"log_to='tensorbord' is not a logger.*Did you mean 'tensorboard'\?"),
        ([{"use": "mlflow", "tracking_token": "hidden"}], r"takes no option 'tracking_token'.*MLFLOW_TRACKING_TOKEN"),
        ({"use": "mlflow", "tracking_uri": "https://me:hidden@host"}, r"must not hold a password"),
        (["mlflow", {"use": "mlflow"}], r"names 'mlflow' more than once"),
        (
            ["none"],
            r"log_to='none' is not a logger. Allowed: tensorboard, mlflow, wandb, a list of them, or none alone",
        ),
        ([["mlflow"]], r"log_to=\['mlflow'\] is not a logger"),
        ({"use": "mlflow", "tags": "mine"}, r"mlflow needs tags as a mapping"),
        ({"use": "wandb", "project": 3}, r"wandb needs project as text"),
    ],
)
def test_what_cannot_be_logged_to_is_refused(given: object, said: str) -> None:
    with pytest.raises(ur.ConfigError, match=said) as caught:
        ur.PruneConfig(**FIELDS, log_to=given)
    assert "hidden" not in str(caught.value)
