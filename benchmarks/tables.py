"""The tables of the READMEs, made from results/*.json: between `<!-- table NAME FILE -->` and `<!-- end -->`.

python benchmarks/tables.py            # writes them anew
python benchmarks/tables.py --check    # says which are out of date
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

HERE = Path(__file__).resolve().parent
PAGES = [HERE / "README.md", HERE.parent / "README.md"]
MARKED = re.compile(r"(<!-- table (\w+) (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def train_speed(report: dict[str, Any]) -> Iterator[str]:
    yield from head(
        "images/s",
        "usual loop (a)",
        "bare loop (b)",
        "ours (c)",
        "ours in a Ray actor (d)",
        "bare scoring (e)",
        "ours (f)",
    )
    for name, case in report["cases"].items():
        speeds = [case["images_per_s"].get(loop) for loop in "abcdef"]
        yield f"| `{name}` | " + " | ".join("" if s is None else whole(s["median"]) for s in speeds) + " |"
    yield ""
    yield from head("ratio, median (quartiles)", "c/a", "c/b", "d/c", "f/e", "rounds")
    for name, case in report["cases"].items():
        ratios = [case["ratios"].get(pair) for pair in ("c/a", "c/b", "d/c", "f/e")]
        cells = ["" if r is None else f"{r['median']:.2f} ({r['q1']:.2f} to {r['q3']:.2f})" for r in ratios]
        yield f"| `{name}` | " + " | ".join(cells) + f" | {case['rounds']['training']} |"


def train_memory(report: dict[str, Any]) -> Iterator[str]:
    yield from head("MB", "data", "model", "activations", "peak", "peak / sum")
    for name, case in report["cases"].items():
        sizes = " | ".join(f"{case[part] / 1e6:,.0f}" for part in ("data", "model", "activations", "peak"))
        yield f"| `{name}` | {sizes} | {case['peak/held']:.2f} |"


def train_accuracy(report: dict[str, Any]) -> Iterator[str]:
    yield from head("model", "recipe", "samples", "accuracy", "seeds", "seconds a training")
    std = "" if report["std"] is None else f" ± {report['std']:.4f}"
    seconds = sum(report["seconds"]) / len(report["seconds"])
    yield (
        f"| `{report['model']}` | {report['recipe']['use']} | {report['samples']:,} | {report['mean']:.4f}{std} "
        f"| {len(report['seeds'])} | {seconds:,.0f} |"
    )


def bill(report: dict[str, Any]) -> Iterator[str]:
    """What each way to score costs, and how its ranks agree."""
    scores = list(report["rows"][0]["scores"])
    yield from head("scoring models", "cost of the choice", "votes", *(f"`{score}`" for score in scores))
    for row in report["rows"]:
        cost = "" if row["bill"] is None else f"{row['bill']:.2f}"
        ranks = (f"{its['seed_to_seed']:.2f}, {its['with_full']:.2f}" for its in row["scores"].values())
        yield f"| {row['variant']} | {cost} | {row['votes']:g} | {' | '.join(ranks)} |"


def sweep(report: dict[str, Any]) -> Iterator[str]:
    """Every trial, the most accurate first."""
    knobs = [name for name, values in report["sweep"]["space"].items() if len(values) > 1]
    baselines = list(report["trials"][0]["baselines"])
    yield from head(*(f"`{knob}`" for knob in knobs), "accuracy", *baselines, "seconds to choose")
    done = [trial for trial in report["trials"] if trial["status"] == "finished"]
    for trial in sorted(done, key=lambda trial: (-fmean(trial["accuracies"]), trial["choosing_seconds"])):
        cells = [str(trial["knobs"][knob]) for knob in knobs]
        cells += [
            f"{fmean(its):.4f}" for its in (trial["accuracies"], *(trial["baselines"][name] for name in baselines))
        ]
        yield f"| {' | '.join(cells)} | {trial['choosing_seconds']:,.0f} |"


def knobs(report: dict[str, Any]) -> Iterator[str]:
    """What each value of each knob is worth."""
    yield from head("knob", "share of the variance", "value", "trials", "accuracy")
    for each in report["importances"]:
        share = f"{max(each['share'], 0):.2f} ({max(each['low'], 0):.2f} to {max(each['high'], 0):.2f})"
        for place, effect in enumerate(each["effects"]):
            name, its = (f"`{each['knob']}`", share) if place == 0 else ("", "")
            worth = f"{effect['accuracy']:.4f} ({effect['low']:.4f} to {effect['high']:.4f})"
            yield f"| {name} | {its} | {effect['value']} | {effect['trials']} | {worth} |"


def trainings(report: dict[str, Any]) -> Iterator[str]:
    """What the trials needed, and how much of it was different work."""
    yield from head("trainings", "asked for", "done", "reused")
    for row in report["trainings"]:
        yield f"| {row['of']} | {row['asked']} | {row['needed']} | {row['asked'] - row['needed']} |"


def suite(report: dict[str, Any]) -> Iterator[str]:
    yield from head(
        "method", "score", "keep", "accuracy", "less random", "less fitting", "spread of classes", "share by accuracy"
    )
    full = report["full"]
    yield f"| full | | 1 | {mean_std(full)} | | | {full['class_spread']:.3f} | |"
    for row in sorted(report["rows"], key=lambda row: -row["keep"]):
        yield (
            f"| {row['method']} | {row['score'] or ''} | {row['keep']:g} | {mean_std(row)} | {lead(row['less_random'])} "
            f"| {lead(row['less_fitting'])} | {row['class_spread']:.3f} "
            f"| {'' if row['share_by_accuracy'] is None else format(row['share_by_accuracy'], '.2f')} |"
        )


def keeps(report: dict[str, Any]) -> Iterator[str]:
    """Accuracy of each method at each keep, by the suite's first score."""
    score = next(row["score"] for row in report["rows"] if row["score"])
    rows = [row for row in report["rows"] if row["score"] in (None, score)]
    columns = sorted({row["keep"] for row in rows}, reverse=True)
    yield from head(score, *(f"keep {keep:g}" for keep in columns))
    found = {(row["method"], row["keep"]): row for row in rows}
    for method in dict.fromkeys(row["method"] for row in rows):
        cells = [mean_std(found[method, keep]) if (method, keep) in found else "" for keep in columns]
        yield f"| {method} | " + " | ".join(cells) + " |"
    yield f"| everything | {mean_std(report['full'])} |" + " |" * (len(columns) - 1)


def leads(report: dict[str, Any]) -> Iterator[str]:
    """What each choice costs as a share of a training on everything, and by how many points it is above random at each keep."""
    columns = sorted({row["keep"] for row in report["rows"]}, reverse=True)
    yield from head("method", "score", "cost", *(f"keep {keep:g}" for keep in columns))
    found = {(row["method"], row["score"], row["keep"]): row for row in report["rows"]}
    for method, score in dict.fromkeys((row["method"], row["score"]) for row in report["rows"]):
        cells = [points(found.get((method, score, keep))) for keep in columns]
        yield f"| {method} | {score or ''} | {cost(report, method)} | " + " | ".join(cells) + " |"
    yield f"| everything | | | {mean_std(report['full'])} |" + " |" * (len(columns) - 1)


def points(row: dict[str, Any] | None) -> str:
    """The lead over random in points with its interval; of random itself the accuracy."""
    if row is None:
        return ""
    return mean_std(row) if row["less_random"] is None else lead(row["less_random"], 100, 1)


def cost(report: dict[str, Any], method: str) -> str:
    bill = report["bills"].get(method)
    is_free = all(row["choosing_s"] == 0 for row in report["rows"] if row["method"] == method)
    return "0" if is_free else "" if bill is None else f"{bill:.2f}"


def ranks(report: dict[str, Any]) -> Iterator[str]:
    yield from head("method", "score", "rank correlation of two seeds", "fullest of 20 bins")
    for facts in report["scores"]:
        yield f"| {facts['method']} | {facts['score']} | {agreement(facts)} | {facts['fullest_bin']:.3f} |"


def agreement(facts: dict[str, Any]) -> str:
    """A rank correlation, where there is one."""
    return "" if facts["rank_correlation"] is None else f"{facts['rank_correlation']:.3f}"


def stages(report: dict[str, Any]) -> Iterator[str]:
    yield from head(
        "method", "score", "keep", "stage", "rank correlation with stage 0", "of the added, stage 0 would have added"
    )
    for row in report["stages"]:
        yield (
            f"| {row['method']} | {row['score']} | {row['keep']:g} | {row['stage']} | {agreement(row)} "
            f"| {100 * row['overlap']:.0f} % |"
        )


def noise(report: dict[str, Any]) -> Iterator[str]:
    """Which flips the guards find, then what the choices hold of them and lead to."""
    yield from head("noise", "guard", "suspects", "recall of the flips", "precision")
    for row in report["guards"]:
        suspects, recall, precision = (fmean(row[name]) for name in ("suspects", "recall", "precision"))
        yield f"| {row['noise']} | {row['guard']} | {suspects:,.0f} | {recall:.3f} | {precision:.3f} |"
    yield ""
    yield from head(
        "noise", "method", "score", "guard", "flips kept", "of the kept", "accuracy", "less random", "less no guard"
    )
    for row in report["choices"]:
        accuracy = "" if row["trained"] is None else mean_std(row["trained"])
        yield (
            f"| {row['noise']} | {row['method']} | {row['score'] or ''} | {row['guard'] or ''} | {fmean(row['flips']):,.0f} "
            f"| {100 * row['share_of_coreset']:.1f} % | {accuracy} | {lead(row['less_random'])} | {lead(row['less_unguarded'])} |"
        )


def copies(report: dict[str, Any]) -> Iterator[str]:
    """Votes on copies by how folds are dealt, then the accuracies of what is kept."""
    cases = list(report["cases"].values())
    yield from head(
        "folds", "votes that are right on copies", "on all others", "mean entropy of copies", "of all others"
    )
    for name in cases[0]:
        right, others, entropy, rest = (
            fmean(case[name][field] for case in cases)
            for field in ("right", "right_others", "entropy", "entropy_others")
        )
        yield f"| {name} | {right:.1%} | {others:.1%} | {entropy:.3f} | {rest:.3f} |"
    yield ""
    yield from head("kept", "folds", "both of a pair", "accuracy", "less random folds")
    for row in report["accuracies"]:
        pairs = [case[row["folds"]]["kept"][str(row["kept"])]["both"] for case in cases if row["folds"] in case]
        less = None if row["low"] is None else {**row, "mean": row["less_random_folds"]}
        both = f"{fmean(pairs):,.0f}" if pairs else ""
        yield f"| {row['kept']:,} | {row['folds']} | {both} | {row['mean']:.4f} | {lead(less)} |"


def chaos(report: dict[str, Any]) -> Iterator[str]:
    yield from head(
        "fault", "times", "broke a training off", "epochs redone, median", "most", "seconds until it goes on"
    )
    for kind, its in report["kinds"].items():
        figures = (
            f"{its['redone_epochs']:.2f} | {its['redone_epochs_most']:.2f} | {its['recovery_s']:.1f}"
            if its["broke_off"]
            else " | | "
        )
        yield f"| {kind} | {its['faults']} | {its['broke_off']} | {figures} |"


def dynamics(report: dict[str, Any]) -> Iterator[str]:
    yield from head(
        "score", "epochs", "state, MB", "answers of the epoch before, MB", "peak, MB", "µs a sample and epoch"
    )
    for row in report["rows"]:
        name = row["score"] if row["columns"] in (0, len(report["rows"]) - 2) else f"`{row['score']}`"
        epochs = report["epochs"] if row["columns"] > 1 else report["epochs_of_each_alone"]
        yield (
            f"| {name} | {epochs} | {row['state_mb']:,.0f} | {row['before_mb']:,.0f} | {row['peak_mb']:,.0f} "
            f"| {row['microseconds_a_sample_and_epoch']:.2f} |"
        )


def scores_cost(report: dict[str, Any]) -> Iterator[str]:
    yield from head(
        "mode",
        "run",
        "seconds",
        "peak, MB",
        "to the same passes with less: seconds",
        "memory",
        "to entropy alone: seconds",
    )
    for row in report["rows"]:
        shares = row["same_passes"] is not None
        ratios = f"{row['seconds_ratio']:.2f} | {row['peak_ratio']:.2f}" if shares else " | "
        yield (
            f"| {row['mode']} | {row['run']} | {row['seconds']:.1f} | {row['peak_mb']:,.0f} | {ratios} "
            f"| {row['seconds_to_entropy']:.2f} |"
        )


def select_speed(report: dict[str, Any]) -> Iterator[str]:
    yield from head("choice", "keep", *(f"{samples:,} samples, s" for samples in report["samples"]))
    for row in report["rows"]:
        cells = " | ".join(f"{row['seconds'][str(samples)]:.2f}" for samples in report["samples"])
        yield f"| {row['choice']} | {row['keep']:g} | {cells} |"


def scale_selection(report: dict[str, Any]) -> Iterator[str]:
    yield from head(
        "samples", "on disk, GB", "choice", "seconds", "CPU seconds", "million samples a second", "peak, MB"
    )
    for row in report["rows"]:
        speed, took = row["samples"] / row["seconds"] / 1e6, f"{row['seconds']:.1f} | {row['cpu_seconds']:.1f}"
        yield (
            f"| {row['samples']:,} | {row['disk_gb']:.2f} | {row['policy']} | {took} | {speed:.1f} "
            f"| {row['peak_mb']:,} |"
        )


def scale_run(report: dict[str, Any]) -> Iterator[str]:
    yield from head(
        "samples",
        "scoring, s",
        "merging, s",
        "choosing, s",
        "in all, s",
        "driver, GB (its own)",
        "fold actor",
        "aggregator",
    )
    for case in report["cases"]:
        stages = case["seconds"]["stages"]
        seconds = [sum(stage[phase] for stage in stages) for phase in ("scoring", "merging", "choosing")]
        held = [case["processes"][name] for name in ("driver", "ray::FoldWorker", "ray::Aggregator")]
        cells = [
            *(f"{each:,.0f}" for each in (*seconds, case["seconds"]["prune in all"])),
            *(f"{each['resident_gb']:.2f} ({each['own_gb']:.2f})" for each in held),
        ]
        yield f"| {case['samples']:,} | {' | '.join(cells)} |"


def scale_after(report: dict[str, Any]) -> Iterator[str]:
    yield from head(f"{report['samples']:,} samples", "seconds", "peak, GB", "written, GB")
    for row in report["rows"]:
        yield f"| `{row['command']}` | {row['seconds']:,.0f} | {row['resident_gb']:.2f} | {row['written_gb']:.2f} |"


def given_probs(report: dict[str, Any]) -> Iterator[str]:
    yield from head("command", "seconds", "peak, GB")
    for row in report["rows"]:
        yield f"| `{row['command']}` | {row['seconds']:,.0f} | {row['resident_gb']:.2f} |"


def decode_speed(report: dict[str, Any]) -> Iterator[str]:
    loops = [name for name in report["rows"][0]["images_per_s"] if name != "ours"]
    titles = [
        "images/s of one core",
        "px",
        "kB an image",
        "ours",
        *loops,
        "ours to Pillow",
        "to the best",
        "to as they come",
    ]
    yield from head(*titles)
    for row in report["rows"]:
        speeds = [row["images_per_s"].get(loop) for loop in ("ours", *loops)]
        ratios = [row["ratios"].get("to Pillow"), row["ratios"].get(f"to {row['best_bare']}"), row["gain"]]
        cells = ["" if speed is None else whole(speed["median"]) for speed in speeds]
        cells += ["" if found is None else f"{found['median']:.2f}" for found in ratios]
        yield f"| {row['form']} | {row['size']} | {row['kB']} | {' | '.join(cells)} |"


def whole(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def mean_std(row: dict[str, Any]) -> str:
    return f"{row['mean']:.4f}" + ("" if row["std"] is None else f" ± {row['std']:.4f}")


def lead(found: dict[str, float | None] | None, scale: int = 1, digits: int = 4) -> str:
    if found is None:
        return ""
    mean, low, high = (
        None if found[of] is None else f"{scale * found[of]:+.{digits}f}" for of in ("mean", "low", "high")
    )
    return f"{mean}" if low is None else f"{mean} ({low} to {high})"


def head(*titles: str) -> Iterator[str]:
    """The first two lines of a table."""
    yield f"| {' | '.join(titles)} |"
    yield "|---" * len(titles) + "|"


TABLES = {
    table.__name__: table
    for table in (
        bill, chaos, copies, decode_speed, dynamics, given_probs, keeps, knobs, leads, noise, ranks, scale_after, scale_run,
        scale_selection, scores_cost, select_speed, stages, suite, sweep, train_accuracy, train_memory, train_speed, trainings,
    )
}  # fmt: skip


def renewed(text: str) -> str:
    """A page with its tables made anew."""

    def table(found: re.Match[str]) -> str:
        report = json.loads((HERE / "results" / found[3]).read_text(encoding="utf-8"))
        return found[1] + "\n".join(TABLES[found[2]](report)) + "\n" + found[4]

    return MARKED.sub(table, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing, end with 1 if a table is out of date")
    args = parser.parse_args()
    for page in PAGES:
        before = page.read_text(encoding="utf-8")
        after = renewed(before)
        if before != after and args.check:
            sys.exit(f"{page.name} has tables that are out of date: python benchmarks/tables.py")
        if before != after:
            page.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()
