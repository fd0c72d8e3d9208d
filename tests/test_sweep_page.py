"""The page of a sweep: what it says, that names are escaped, that a browser shows it without an error or a request."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import unseen_ray as ur
from tests.browser import check_in_browser, needs_browser
from tests.test_report import Page
from unseen_ray.sweeps.page import render_sweep
from unseen_ray.sweeps.records import Record, best_of, front_of, importances_of, trainings_of
from unseen_ray.sweeps.space import grid

SECTIONS = ["best", "knobs", "front", "trials", "sweep"]
NASTY = "</script><script>alert(1)</script>"
SPACE = {"folds": [2, 4, 8], "train_on": ["fold", "complement"], "score": ["entropy", NASTY], "schedule.stages": [1, 3]}


def config() -> ur.SweepConfig:
    return ur.SweepConfig(run={"source": "digits", "keep": 0.7, "holdout": 0.1}, space=SPACE, out="runs/sweep")


def records() -> list[Record]:
    rng = np.random.default_rng(0)
    found = []
    for number, knobs in enumerate(grid(SPACE)):
        accuracy = 0.6 + 0.02 * (knobs["schedule.stages"] == 3) + rng.normal(0, 0.002)
        found.append(
            Record(
                name=f"{number:012d}",
                knobs=knobs,
                status="finished",
                kept=6300,
                accuracies=(accuracy,),
                baselines={"random": (0.61,), "full": (0.65,)},
                choosing_seconds=20.0 * knobs["folds"] + number,
                trainings=tuple((0, f"{knobs['folds']}-{fold}") for fold in range(knobs["folds"])),
                measured=(f"own {number}", "random", "full"),
            )
        )
    return [*found, Record(name="failed", knobs=found[0].knobs, status="failed", error=f"it said {NASTY}")]


def page(its: list[Record]) -> str:
    return render_sweep("runs/sweep", config(), its)


def test_the_page_says_what_the_records_say() -> None:
    its = records()
    text = page(its)
    best = best_of(its)
    assert best is not None and best.knobs["schedule.stages"] == 3
    found = Page(text)
    shown = " ".join(" ".join(found.text).split())
    assert "24 of 25 trials finished" in shown
    assert f"{100 * best.accuracy:.2f} % accuracy on the holdout" in shown
    assert set(SECTIONS) <= found.ids
    assert found.tags.count("svg") == 4 and "script" not in found.tags
    assert all(value.startswith("#") for value in found.loads)
    assert NASTY in shown and NASTY not in text
    stage_0, proxy = trainings_of(its)
    assert (stage_0.asked, stage_0.needed) == (112, 14) and (proxy.asked, proxy.needed) == (72, 26)
    assert f"stage 0 {stage_0.asked} {stage_0.needed} {stage_0.asked - stage_0.needed}" in shown
    first = importances_of(its, list(SPACE))[0]
    assert first.knob == "schedule.stages" and first.low > 0.5
    assert [record.cost for record in front_of(its)] == sorted(record.cost for record in front_of(its))


@pytest.mark.parametrize(
    ("ours", "said"),
    [
        ((0.7, 0.72, 0.74, 0.78), "Ahead of random: +10.50 points of accuracy, 95 % interval +"),
        ((0.7, 0.72, 0.74, 0.76), "No interval yet for the gain over random: +10.00 points"),
        ((0.5, 0.7, 0.7, 0.7), "Level with random: +2.00 points"),
        ((0.61,), "No interval yet for the gain over random: -2.00 points"),
    ],
)
def test_the_headline_pairs_the_runs_of_the_best_trial_with_random(ours: tuple[float, ...], said: str) -> None:
    random = (0.6, 0.62, 0.64, 0.66)[: len(ours)] if len(ours) > 1 else (0.63,)
    best = replace(records()[0], accuracies=ours, baselines={"random": random})
    several = config().model_copy(update={"seeds": len(ours)})
    shown = "".join(Page(render_sweep("runs/sweep", several, [best])).text)
    assert said in " ".join(shown.split())


def test_a_sweep_of_which_nothing_or_little_has_finished_has_a_page() -> None:
    assert "No trial has finished." in page(records()[-1:])
    shown = " ".join("".join(Page(page(records()[:2])).text).split())
    assert "Too few trials have finished to tell the hyperparameters apart." in shown


@needs_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_every_section_without_an_error_or_a_request(tmp_path: Path, width: int) -> None:
    (tmp_path / "sweep.html").write_text(page(records()), encoding="utf-8")
    check_in_browser(tmp_path / "sweep.html", SECTIONS, width)
