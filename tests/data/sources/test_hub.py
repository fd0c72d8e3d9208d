"""Data sets and buckets of the Hugging Face hub are read as their local copies are."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import unseen_ray as ur
from tests.data.sources.test_forms import FAST, FORMS, IMAGES, LABELS, NAMES, opened
from tests.hub import REPO, HubServer, hub_server
from unseen_ray.errors import ConfigError, DataError

DATA_SET, BUCKET = f"hf://datasets/{REPO}", f"hf://buckets/{REPO}"
TOKEN = "hf_loopbackloopbackloopback"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    (tmp_path / "hub").mkdir()
    for form, name in (("folder", "folder"), ("parquet", "data"), ("csv", "csv")):
        FORMS[form](tmp_path / "hub" / name)
    with hub_server(tmp_path / "hub", monkeypatch) as server:
        yield server


@pytest.mark.parametrize("top", [DATA_SET, BUCKET])
@pytest.mark.parametrize(
    "path", ["data", "data/train-*.parquet", "data/train-{0..1}.parquet", "folder", "csv/list.csv"]
)
def test_what_is_on_the_hub_is_read_as_its_copy_is(hub: HubServer, top: str, path: str) -> None:
    there, here = opened(f"{top}/{path}"), opened(str(hub.root / path))
    assert there.info.labels_N.tolist() == here.info.labels_N.tolist() == LABELS.tolist()
    assert there.info.class_names == NAMES and there.info.fingerprint == here.info.fingerprint
    assert there.keys(range(60)) == here.keys(range(60))
    order = np.random.default_rng(0).permutation(60).tolist()
    assert [raw for _, raw in there.read(order)] == [IMAGES[number] for number in order]


def test_the_command_line_prunes_a_private_data_set_and_keeps_its_token_to_itself(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.token = TOKEN
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    out = tmp_path / "run"
    line = ["-v", "prune", "--source", f"{DATA_SET}/data", "--keep", "0.5", "--folds", "2", "--recipe.epochs", "1"]
    line += ["--recipe.min_steps", "0", "--executor", "local", "--out", str(out)]
    ended = subprocess.run([sys.executable, "-m", "unseen_ray", *line], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    ur.prune(ur.PruneConfig(source=str(hub.root / "data"), out=tmp_path / "local", **FAST))
    assert pq.read_table(out / "coreset.parquet").equals(pq.read_table(tmp_path / "local" / "coreset.parquet"))
    said = [ended.stdout.encode(), ended.stderr.encode()]
    assert not any(
        TOKEN.encode() in data for data in [*said, *(path.read_bytes() for path in out.rglob("*") if path.is_file())]
    )


def test_a_changed_data_set_is_noticed(hub: HubServer) -> None:
    before = opened(f"{DATA_SET}/folder").info
    path = next((hub.root / "folder" / "ant").iterdir())
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\0")
    after = opened(f"{DATA_SET}/folder").info
    assert after.fingerprint == before.fingerprint and after.sample != before.sample


def test_what_is_private_or_missing_is_named(hub: HubServer) -> None:
    with pytest.raises(DataError, match=rf"source {DATA_SET}/none\.parquet does not exist"):
        opened(f"{DATA_SET}/none.parquet")
    with pytest.raises(DataError, match=r"hf://datasets/\S+ cannot be read: .*no such data set or bucket.*HF_TOKEN"):
        opened("hf://datasets/someone/other/a.parquet")
    hub.token = TOKEN
    with pytest.raises(DataError, match=r"no such data set or bucket, or it is private and HF_TOKEN does not open it"):
        opened(f"{DATA_SET}/data/train-0.parquet")
    with pytest.raises(ConfigError, match=r"must be 'namespace/name'"):
        opened("hf://datasets")


def test_a_hub_that_fails_for_a_while_is_waited_for(hub: HubServer) -> None:
    end = time.monotonic() + 0.7
    hub.fault = lambda path: 503 if time.monotonic() < end else None
    assert len(opened(f"{DATA_SET}/data").info) == 60
    source = opened(f"{DATA_SET}/data")
    end = time.monotonic() + 0.7
    assert [raw for _, raw in source.read(range(60))] == IMAGES


def test_a_hub_that_cannot_be_reached_is_an_error_in_seconds(hub: HubServer) -> None:
    hub.close()
    line = [sys.executable, "-m", "unseen_ray", "plan", "--source", f"{DATA_SET}/data", "--keep", "0.5"]
    ended = subprocess.run(line, capture_output=True, text=True, timeout=20)
    assert ended.returncode == 2
    assert re.fullmatch(
        r"error: hf://\S+ cannot be opened: .*no connection to the hub: .* Check the .*HF_TOKEN.*\n", ended.stderr
    )
