"""What a sweep's plan counts, without torch or ray."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import unseen_ray as ur
from unseen_ray.config.resolved import ResolvedRun
from unseen_ray.config.run import load_yaml
from unseen_ray.sweeps.plan import plan_sweep
from unseen_ray.sweeps.trials import keeping_for

RUN = {
    "source": {"use": "digits", "limit": 500},
    "keep": 0.6,
    "holdout": 0.2,
    "model": "small_cnn",
    "recipe": {"epochs": 2},
}
SWEEPS = sorted((Path(__file__).parents[2] / "benchmarks" / "sweeps").glob("*.yaml"))


def shares(**fields: Any) -> dict[str, tuple[int, int]]:
    plan = plan_sweep(ur.SweepConfig(**{"run": RUN, "out": "x", "against": [], **fields}))
    return {share.kind: (share.asked, share.needed) for share in plan.shares}


def test_what_trials_share_is_counted_once() -> None:
    space = {
        "folds": [2, 4, 8],
        "train_on": ["fold", "complement"],
        "score": ["entropy", "margin"],
        "schedule.stages": [1, 3],
        "schedule.first_share": [0.5],
    }
    found = shares(space=space)
    assert found["stage 0"] == (112, 26)
    assert found["stage 1"] == found["stage 2"] == (12, 10)
    assert found["proxy"] == (24, 20)


def test_other_keeps_and_policies_cost_proxies_alone() -> None:
    found = shares(space={"keep": [0.3, 0.5, 0.7], "policy": ["top", "ccs"]}, against=["random", "full"])
    assert found["stage 0"] == (24, 4)
    assert found["proxy"] == (18, 6 + 3 + 1)


def test_early_stages_are_measured_where_a_scheduler_looks_at_them() -> None:
    space = {"schedule.stages": [3], "schedule.first_share": [0.5]}
    assert shares(space=space)["proxy"] == (1, 1)
    assert shares(space=space, scheduler="asha")["proxy"] == (6, 6)


def test_seeds_are_trained_apart() -> None:
    assert shares(space={"score": ["entropy", "margin"]}, seeds=2)["stage 0"] == (16, 8)


def test_the_command_counts_and_loads_neither_torch_nor_ray(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({"run": RUN, "space": {"folds": [2, 4]}}))
    code = (
        "import sys; from unseen_ray.cli import main\n"
        "try: main(['plan', 'sweep.yaml', '--images_per_s', '1000', '--json', '--recipe.epochs', '4'])\n"
        "finally: assert not {'torch', 'ray'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout)
    assert (values["trials"], values["num_samples"], values["num_holdout"]) == (2, 400, 100)
    assert [share["needed"] for share in values["shares"]] == [6, 4]
    assert values["worker_hours"] == pytest.approx((values["images_trained"] + values["images_scored"] / 3) / 3.6e6)


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_ready_sweep_is_one(path: Path) -> None:
    fields = load_yaml(path)
    fields["run"]["source"] = "tests.sweep_plugs:squares"
    if fields["run"]["recipe"]["use"] == "imagenet-16":  # which crops to more than a source of one's own has
        fields["run"]["recipe"]["train_px"] = 64
    config = ur.SweepConfig(**fields, out="x")
    assert plan_sweep(config).trials >= 6


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("out", "", r"^out='' is not allowed"),
        ("out", 7, r"^out=7 is not allowed: .*Write '\./7'"),
        ("address", "", r"^address='' is not allowed: it must be an address"),
        ("seed", 2**32, r"^seed: .*less than or equal to 4294967295|^seed=4294967296 .*4294967295"),
        ("against", 7, r"^against=7 is not a baseline of a sweep\. Allowed: random, random_matched, full"),
        ("against", {"random": 1}, r"^against=\{'random': 1\} is not a baseline"),
    ],
)
def test_what_a_sweep_cannot_take_is_refused_by_its_field(field: str, value: object, message: str) -> None:
    with pytest.raises(ur.ConfigError, match=message):
        ur.SweepConfig(**{"run": RUN, "space": {"keep": [0.3, 0.5]}, "out": "x", field: value})


def test_trials_store_dyn_unc_for_one_another_under_the_key_of_todays_default() -> None:
    runs = [ur.PruneConfig(source="digits", keep=0.5, score=score) for score in ("entropy", "dyn_unc")]
    keeping = keeping_for(runs)
    assert "dyn_unc" in keeping.also_score
    each = [ResolvedRun(run.changed(also_score=keeping.also_score)).scores for run in runs]
    assert each[0].key == each[1].key
    assert '{"last_window": false, "use": "dyn_unc"}' in each[0].key["scores"]
    before = ResolvedRun(runs[1], exact=False).scores.key  # votes of an earlier version have another window
    assert '"dyn_unc"' in before["scores"]
