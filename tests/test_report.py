"""The report: every section, every text of the data escaped, nothing asked of the network, small whatever the run's size."""

from __future__ import annotations

import json
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import unseen_ray as ur
from tests.browser import check_in_browser, needs_browser
from tests.conftest import class_pixels, png_bytes
from unseen_ray.cli.app import main
from unseen_ray.cli.summary.run import next_step
from unseen_ray.evaluation.table import Arm, break_even_of, differences_of
from unseen_ray.reporting import score_tables
from unseen_ray.reporting.facts import ReportFacts
from unseen_ray.reporting.figures import accuracies
from unseen_ray.reporting.headline import command_to_measure, headline_of, verdict
from unseen_ray.reporting.score_tables import Rows
from unseen_ray.reporting.thumbnails import picked
from unseen_ray.storage import tables
from unseen_ray.storage.checked_json import without_nan
from unseen_ray.storage.filesystem import Folder

SECTIONS = ["kept", "images", "scores", "stages", "accuracy", "suspects", "run"]
NAMES = ["</script><script>alert(1)</script>", "a & b <i>", '"quoted" $x^2$', "猫"]
FAST = {"use": "quick", "epochs": 2, "min_steps": 0}


class Page(HTMLParser):
    """What a browser would find in a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: set[str] = set()
        self.sections: list[str] = []
        self.links: list[str | None] = []
        self.titles: list[str | None] = []
        self.loads: list[str] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [dict(attrs)["href"]] if tag == "a" else []
        self.titles += [dict(attrs).get("title")] if tag == "img" else []
        for name, value in attrs:
            if name == "id":
                self.ids.add(value or "")
                self.sections += [value or ""] if tag == "section" else []
            if name in ("src", "href", "xlink:href", "data", "srcset", "action"):
                self.loads.append(value or "")
            assert not name.startswith("on"), f"<{tag} {name}>"

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def prune_named(folder: Path, **fields: object) -> ur.PruneResult:
    """A run of images whose classes have troublesome names."""
    labels = np.arange(200) % len(NAMES)
    metadata = {b"class_names": json.dumps(NAMES).encode()}
    data, test = folder / "data.parquet", folder / "test.parquet"
    for seed, path in enumerate((data, test)):
        images = [{"bytes": png_bytes(pixels), "path": None} for pixels in class_pixels(labels, 8, seed)]
        pq.write_table(pa.table({"image": images, "label": labels}).replace_schema_metadata(metadata), path)
    asked = {"keep": 0.5, "folds": 2, "recipe": FAST, "executor": "local", "test": str(test), **fields}
    asked = {name: value for name, value in asked.items() if value is not None}
    return ur.prune(ur.PruneConfig(source=str(data), out=folder / "run", **asked))


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> ur.PruneResult:
    result = prune_named(tmp_path_factory.mktemp("report"), schedule=[0.3, 0.4, 0.5], guard="label_margin")
    ur.evaluate(result, seeds=2, selections=2, against=("random", "full", "fitting"))
    ur.report(result)
    return result


def page_of(result: ur.PruneResult) -> str:
    return Path(result.path, "report.html").read_text(encoding="utf-8")


def test_the_page_has_every_section_and_loads_nothing(reported: ur.PruneResult) -> None:
    page = Page(page_of(reported))
    assert page.sections == SECTIONS
    assert page.links == [f"#{name}" for name in SECTIONS]
    assert page.tags.count("svg") == 8  # accuracy, two of classes, distribution, two of seeds, two of stages
    assert "script" not in page.tags
    assert page.loads
    assert all(value.startswith(("data:image/jpeg;base64,", "#")) for value in page.loads)


def test_every_name_of_the_data_is_escaped(reported: ur.PruneResult) -> None:
    text = page_of(reported)
    assert "<script" not in text
    shown = "".join(Page(text).text)
    for name in NAMES:
        assert name in shown


def test_the_page_says_what_the_numbers_say(reported: ur.PruneResult) -> None:
    values = ur.report_values(reported)
    json.dumps(values, allow_nan=False)
    assert (values["kept"], values["samples"]) == (100, 200)
    assert [row["mode"] for row in values["agreement"]] == ["unseen", "fitting"]
    assert [row["stage"] for row in values["importance"]] == [1, 2]
    assert sum(values["classes"]["kept"]) == 100
    assert sum(values["distribution"]["counts"]["unseen"]) == 200
    assert set(values["classes"]["accuracy"]) == {"coreset", "random", "full", "fitting"}
    correlation = np.array(values["collinearity"]["rank_correlation"], float)
    assert np.allclose(np.diag(correlation), 1)
    shown = " ".join("".join(Page(page_of(reported)).text).split())
    assert "100 of 200 samples" in shown
    assert f"{values['agreement'][0]['rank_correlation']:.3f}" in shown


def test_suspects_are_listed_with_what_became_of_them(tmp_path: Path) -> None:
    result = prune_named(tmp_path, guard={"use": "label_margin", "cut": 0.6})
    ur.report(result)
    suspects = ur.report_values(result)["suspects"]
    table = result.scores
    flags, ids = table.column("suspect").to_numpy(), table.column("id").to_numpy()
    assert suspects["found"] == flags.sum() == 120
    assert suspects["kept"] == np.isin(ids[flags], result.coreset.ids).sum() == 20
    assert len(suspects["first"]) == 100
    assert [row["p_label"] for row in suspects["first"]] == sorted(row["p_label"] for row in suspects["first"])
    for row in suspects["first"]:
        assert flags[ids == row["id"]] and row["kept"] == (row["id"] in result.coreset.ids)
        assert row["label"] == NAMES[row["id"] % len(NAMES)]
    shown = " ".join("".join(Page(page_of(result)).text).split())
    assert (
        "The 100 least likely of 120 labels that guard label_margin (always a share of 0.6) suspects; 20 of these samples were kept"
        in shown
    )
    assert f"{suspects['first'][0]['key']} {suspects['first'][0]['id']}" in " ".join(Page(page_of(result)).text)


def test_a_run_whose_source_is_not_seen_from_here_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number, pixels in enumerate(class_pixels(np.arange(40) % 2, 8, 0)):
        (tmp_path / "photos" / str(number % 2)).mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / str(number % 2) / f"{number}.png").write_bytes(png_bytes(pixels))
    result = ur.prune(source="photos", keep=0.5, folds=2, recipe=FAST, executor="local", out="run")
    measure = "unseen-ray evaluate run --against random,full --seeds 5 --test SOURCE --executor local"
    assert next_step(result) == ("To compare it with a random subset and with everything", measure)
    monkeypatch.chdir(tmp_path / "run")
    assert "--test SOURCE" in Path(ur.report("../run")).read_text()


def test_a_run_without_images_is_not_said_to_be_measured_by_evaluate(tmp_path: Path) -> None:
    labels = np.arange(60) % 3
    np.save(tmp_path / "labels.npy", labels)
    np.save(tmp_path / "probs.npy", np.eye(3, dtype=np.float32)[labels] * 0.7 + 0.1)
    ur.score(str(tmp_path / "probs.npy"), str(tmp_path / "labels.npy"), out=tmp_path / "scored")
    result = ur.select(str(tmp_path / "scored"), keep=0.5, out=tmp_path / "half")
    with pytest.raises(ur.ConfigError, match=r"labels and no images to train on\. Score with --source"):
        ur.evaluate(result, test="digits")
    assert next_step(result)[1] == f"unseen-ray export {result.path} --to kept.csv"
    assert "is not measured: <code>evaluate</code> cannot train" in Path(ur.report(result)).read_text()


def test_a_bare_run_shows_what_it_has_and_names_the_command_that_measures_it(tmp_path: Path) -> None:
    result = prune_named(tmp_path, policy="top")
    page = Page(Path(ur.report(result)).read_text())
    assert page.sections == ["kept", "images", "scores", "run"]
    assert page.links == [f"#{name}" for name in page.sections]
    shown = " ".join("".join(page.text).split())
    command = f"unseen-ray evaluate {result.path} --against random,full --seeds 5 --executor local"
    assert f"Is it worth it? The gain over a random subset is not measured yet; this measures it: {command} " in shown
    assert page.text.index("Is it worth it?") < page.text.index("What was kept")


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"test": None}, " --test SOURCE"),
        ({"test": None, "holdout": 0.2}, ""),
    ],
)
def test_the_command_names_what_to_measure_on_where_the_run_has_nothing(
    tmp_path: Path, fields: dict[str, object], place: str
) -> None:
    run = prune_named(tmp_path, **fields).run
    assert command_to_measure(run).endswith(f"--seeds 5{place} --executor local")


def arm(name: str, accuracies: list[float], seconds: float) -> Arm:
    return Arm(
        name=name, samples=10, selections=1, accuracies=tuple(accuracies), class_accuracy=(0.5,), class_samples=(10.0,),
        seconds=seconds, seconds_each=seconds, seconds_std=0.0, choosing_s=6.0, devices=("cpu",), choosing_devices=("cpu",), drawn=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("ours", "said"),
    [
        ([0.8, 0.81, 0.82], "Ahead of random"),
        ([0.68, 0.7, 0.73], "Level with random"),
        ([0.5, 0.51, 0.52], "Behind random"),
        ([0.8], "No interval yet for the gain over random"),
    ],
)
def test_the_headline_is_the_gain_over_random_and_its_price(ours: list[float], said: str) -> None:
    arms = [
        arm("coreset", ours, 2),
        arm("random", [0.69, 0.7, 0.71][: len(ours)], 2),
        arm("full", [0.9] * len(ours), 4),
    ]
    table = {
        "arms": [{"name": each.name, "seconds_each": each.seconds_each} for each in arms],
        "differences": [without_nan(asdict(each)) for each in differences_of(arms)],
        "break_even": asdict(break_even_of(arms)),
    }
    found = headline_of(table, bill=9.0)
    assert verdict(found["low"], found["high"]) == said
    assert verdict(found["low"], found["high"], "random_matched").startswith(f"{said} with the same class counts")
    assert found["gain"] == pytest.approx(np.mean(ours) - 0.7 if len(ours) > 1 else 0.11)
    assert (found["bill"], found["bill_of"], found["paid_after"]) == (1.5, "time", 3.0)
    assert headline_of(table, bill=9.0, is_random=True)["paid_after"] is None
    table["break_even"] = None  # as where full was not trained
    assert (headline_of(table, bill=9.0)["bill"], headline_of(None, bill=9.0)["bill_of"]) == (9.0, "images")


def test_a_run_in_fitting_mode_and_a_score_of_one_value_are_said_as_they_are(tmp_path: Path) -> None:
    result = prune_named(tmp_path, mode="fitting", folds=None, score="tests.plugs:flat", also_score=["entropy"])
    values = ur.report_values(result)
    assert list(values["distribution"]["counts"]) == ["fitting"]
    with pytest.raises(
        ur.ConfigError, match="policy auto needs the accuracy on unseen samples, which mode: fitting does not"
    ):
        ur.select(result, keep=0.5, policy="auto", out=tmp_path / "auto")
    assert values["distribution"]["fullest_bin"] == {"fitting": 1.0}
    assert values["collinearity"]["rank_correlation"][0] == [None, None]
    ur.report(result)
    assert "undefined" in page_of(result)


def test_the_table_of_an_evaluation_that_is_damaged_or_has_not_finished_is_left_out(tmp_path: Path) -> None:
    result = prune_named(tmp_path)
    for text in ("{", '{"tables": null}', '{"tables": []}', '{"tables": [{"arms": []}]}', "[]"):
        Path(result.path, "evaluation.json").write_text(text)
        assert ur.report_values(result)["evaluation"] is None


def test_deviations_are_drawn_within_0_and_1() -> None:
    text = accuracies(["coreset"], [[1.0, 1.0, 1.0, 0.4]], title="")
    assert "100" in text and "110" not in text and "120" not in text


def test_images_are_left_out_where_the_data_is_gone_or_has_changed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result = prune_named(tmp_path)
    data = tmp_path / "data.parquet"
    table = pq.read_table(data)
    pq.write_table(table.slice(0, 199), data)
    ur.report(result)
    assert "has changed since the run" in page_of(result)
    data.unlink()
    ur.report(result)
    assert "Images are not shown: source" in page_of(result)
    assert "the page has no images: source" in caplog.text
    assert "<img" not in page_of(result)


def test_a_page_with_images_is_only_replaced_by_one_without_when_that_is_asked_for(tmp_path: Path) -> None:
    path = prune_named(tmp_path).path
    before = Path(ur.report(path)).read_bytes()
    assert before.count(b"<img ") > 20
    moved = tmp_path / "elsewhere" / "data.parquet"
    moved.parent.mkdir()
    (tmp_path / "data.parquet").rename(moved)
    with pytest.raises(ur.ConfigError, match=r"has images, and a new page would have none: source .*--source PLACE"):
        ur.report(path)
    assert Path(path, "report.html").read_bytes() == before
    with pytest.raises(ur.ConfigError, match="Leave one of the two out"):
        ur.report(path, source=str(moved), images=False)
    with pytest.raises(ur.DataError, match="has changed since the run, or is another one"):
        ur.report(path, source=str(tmp_path / "test.parquet"))
    main(["report", path, "--source", str(moved)])
    assert Path(path, "report.html").read_bytes().count(b"<img ") == before.count(b"<img ")
    main(["report", path, "--no-images"])
    page = Page(Path(path, "report.html").read_text())
    assert "img" not in page.tags and "images" not in page.sections


def test_a_function_that_the_run_names_is_not_called(tmp_path: Path) -> None:
    result = ur.prune(
        ur.PruneConfig(source="tests.plugs:noise", keep=0.5, folds=2, recipe=FAST, executor="local", out=tmp_path)
    )
    ur.report(Path(result.path))
    assert "which is not imported for a run folder" in page_of(result)


def test_a_function_that_the_caller_names_is_called(tmp_path: Path) -> None:
    result = ur.prune(
        ur.PruneConfig(source="tests.plugs:noise", keep=0.5, folds=2, recipe=FAST, executor="local", out=tmp_path)
    )
    assert "<img" in Path(ur.report(result.path, source="tests.plugs:noise")).read_text()


def test_an_image_tells_its_class_its_key_and_its_score(reported: ur.PruneResult) -> None:
    scores = dict(
        zip(reported.scores.column("id").to_pylist(), reported.scores.column("entropy").to_pylist(), strict=True)
    )
    shown = [(title or "").splitlines() for title in Page(page_of(reported)).titles]
    assert len(shown) > 20
    for classes, key, entropy in shown:
        name, number = key.removesuffix(")").split(" (id ")
        assert name == f"data.parquet:{number}"
        assert classes.startswith(f"{NAMES[int(number) % len(NAMES)]}, predicted ")
        assert entropy.startswith(f"entropy {scores[int(number)]:.3f}, ")


def test_what_is_counted_and_shown_of_a_sampled_run_is_of_all_candidates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = prune_named(tmp_path, schedule=[0.3, 0.4, 0.5], guard="confident_learning", policy="class_balanced")
    ur.evaluate(result, seeds=1, selections=2, against=("random", "fitting"))
    whole = ur.report_values(result)
    monkeypatch.setattr(tables, "_BATCH", 7)
    assert ur.report_values(result) == whole
    monkeypatch.setattr(score_tables, "HELD_ROWS", 90)
    sampled = ur.report_values(result)
    assert 60 < sampled.pop("sampled") < 120
    of_the_sample = {"distribution", "agreement", "importance", "collinearity"}
    assert {name for name in whole if whole[name] != sampled[name]} == of_the_sample
    for kind in ("agreement", "importance"):
        for row, wanted in zip(sampled[kind], whole[kind], strict=True):
            assert abs(row["rank_correlation"] - wanted["rank_correlation"]) < 0.3
            assert 0 <= row["overlap"] <= 1
            assert {row.get(name) for name in ("stage", "candidates", "added")} == {
                wanted.get(name) for name in ("stage", "candidates", "added")
            }
    ur.report(result)
    assert "drawn by a hash of their ids" in page_of(result)
    assert page_of(result).count("<img") > 20


@pytest.mark.slow
def test_a_page_on_a_million_samples_stays_small(tmp_path: Path) -> None:
    """The run folder of ImageNet-1K's size, with synthetic scores and labels."""
    small = prune_named(tmp_path)
    count, classes = 1_281_167, 1000
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, count)
    entropy = rng.gamma(2.0, 1.0, count).astype(np.float32)
    columns = {"id": np.arange(count), "label": labels, "votes": np.full(count, 3, np.int32), "pred": labels}
    columns["p_label"] = rng.random(count, np.float32)
    for name in ("entropy", "el2n", "label_margin", "least_confidence", "loss", "margin"):
        columns[name] = entropy + rng.normal(0, 0.1, count).astype(np.float32)
        columns[f"std_{name}"] = np.zeros(count, np.float32)
    kept = np.sort(rng.permutation(count)[: round(0.7 * count)])
    folder = Folder(small.path)
    digests = {"stage-00/scores.parquet": folder.write_table("stage-00/scores.parquet", pa.table(columns))}
    coreset = {"id": kept, "key": pa.array(map(str, kept)), "label": labels[kept]}
    coreset |= {"stage": np.zeros(len(kept), np.int32), "score": entropy[kept]}
    digests["coreset.parquet"] = folder.write_table("coreset.parquet", pa.table(coreset))
    manifest = json.loads(Path(small.path, "manifest.json").read_text())
    del manifest["sha256"]
    manifest["files"] |= digests
    names, counts = [f"n{number:08d}" for number in range(classes)], np.bincount(labels).tolist()
    manifest["source"] |= {"num_classes": classes, "class_names": names, "class_counts": counts}
    Path(small.path, "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "data.parquet").unlink()
    ur.report(small.path)
    page = Path(small.path, "report.html")
    assert page.stat().st_size < 5_000_000
    assert "1,281,167 samples" in page.read_text()


@needs_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_every_section_without_an_error_or_a_request(reported: ur.PruneResult, width: int) -> None:
    check_in_browser(Path(reported.path, "report.html"), SECTIONS, width)


def test_the_suspects_shown_are_those_that_the_warning_counts() -> None:
    labels = np.repeat(
        [0, 1], [90, 10]
    )  # guessing gives the small class a tenth: a label below half of that is suspected
    p_label = np.where(labels == 0, 0.9, 0.1)
    p_label[[92, 97]] = 0.01
    columns = {"id": np.arange(100), "label": labels, "pred": np.zeros(100, np.int64), "p_label": p_label}
    classes = {"names": ["many", "few"], "samples": [90, 10], "share": [0.5, 0.4]}
    facts = ReportFacts(
        values={"score": "entropy", "classes": classes, "kept": 49, "samples": 100},
        rows=Rows(
            table=pa.table({**columns, "entropy": np.linspace(0, 1, 100)}),
            stage_M=np.full(100, -1),
            last_M=np.zeros(100),
        ),
        last_stage=0,
    )
    shown = {name: [row["id"] for row in groups["suspected mislabelled"]] for name, groups in picked(facts).items()}
    assert shown == {"many": [], "few": [92, 97]}
