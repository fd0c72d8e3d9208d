"""Training sets with the flaws that real ones have, made from a sound one: classes of unlike size, wrong labels.

`long_tail`: of the first class all samples are kept, of the last a part in `--factor`, of those between in geometric steps; the first
samples of each class stay. `symmetric` and `class_dependent`: a fifth of the labels of the first `--samples` rows is wrong. The first
flips each to any other class alike; the second truck to automobile, bird to airplane, deer to horse, cat to dog and dog to cat (of
CIFAR-10), so many of these five classes that a fifth of all labels flips. The true class stays in the column `true_label`.

python benchmarks/flawed_data.py long_tail --source data/cifar10-train.parquet --to data/cifar10-long-tail.parquet
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from unseen_ray.core.seeds import derive, rng_for

FLIPPED = 0.2
FLIPS = {9: 1, 2: 0, 4: 7, 3: 5, 5: 3}
"""Class-dependent: truck to automobile, bird to airplane, deer to horse, cat to dog, dog to cat."""


def symmetric(labels_N: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(N,) labels, a fifth of them another class, each other one alike."""
    num_classes = int(labels_N.max()) + 1
    flipped = rng.choice(len(labels_N), round(FLIPPED * len(labels_N)), replace=False)
    noisy_N = labels_N.copy()
    noisy_N[flipped] = (labels_N[flipped] + rng.integers(1, num_classes, len(flipped))) % num_classes
    return noisy_N


def class_dependent(labels_N: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(N,) labels, a fifth of them the class that theirs is taken for; all that can be, where that is less than a fifth."""
    can = np.flatnonzero(np.isin(labels_N, list(FLIPS)))
    flipped = rng.choice(can, min(round(FLIPPED * len(labels_N)), len(can)), replace=False)
    noisy_N = labels_N.copy()
    noisy_N[flipped] = [FLIPS[label] for label in labels_N[flipped].tolist()]
    return noisy_N


NOISES: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "symmetric": symmetric,
    "class_dependent": class_dependent,
}


def noisy(rows: pa.Table, noise: str, seed: int) -> pa.Table:
    """The rows with wrong labels among them; the true ones are the column `true_label`."""
    true_N = rows.column("label").to_numpy()
    noisy_N = NOISES[noise](true_N, rng_for(derive(seed, noise)))
    given = rows.set_column(rows.schema.get_field_index("label"), "label", pa.array(noisy_N))
    return given.append_column("true_label", pa.array(true_N))


def long_tail(rows: pa.Table, factor: float, *, backwards: bool = False) -> pa.Table:
    """The first rows of each class, in geometric steps from all of class 0 to one in `factor` of the last class, or `backwards`."""
    labels_N = rows.column("label").to_numpy()
    sizes_C = np.bincount(labels_N)
    kept_C = np.round(sizes_C.max() * factor ** -np.linspace(0, 1, len(sizes_C))).astype(int)[:: -1 if backwards else 1]
    first = [np.flatnonzero(labels_N == label)[:count] for label, count in enumerate(kept_C)]
    return rows.take(np.sort(np.concatenate(first)))


def write_rows(rows: pa.Table, path: Path) -> None:
    """A Parquet file that is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").rename(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("flaw", choices=["long_tail", *NOISES])
    parser.add_argument("--source", required=True, help="a Parquet file with a column `label`")
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=None, help="only the first so many rows  [default: all]")
    parser.add_argument("--factor", type=float, default=50.0)
    parser.add_argument("--backwards", action="store_true", help="the last class is the largest")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rows = pq.read_table(args.source).slice(0, args.samples)
    is_tail = args.flaw == "long_tail"
    flawed = long_tail(rows, args.factor, backwards=args.backwards) if is_tail else noisy(rows, args.flaw, args.seed)
    write_rows(flawed, args.to)
    print(f"{args.to}: {flawed.num_rows:,} rows, by class {np.bincount(flawed.column('label').to_numpy()).tolist()}")


if __name__ == "__main__":
    main()
