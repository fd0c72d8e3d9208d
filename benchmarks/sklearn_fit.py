"""A training of one's own in place of model and recipe: scikit-learn's logistic regression on raw pixels.

cd benchmarks && unseen-ray prune --source digits --keep 0.7 --fit sklearn_fit:logistic_regression --out ../runs/sklearn
"""

import numpy as np
from sklearn.linear_model import LogisticRegression


def logistic_regression(task, *, source, strength=0.1):
    """Train on task.train_ids, answer for task.unseen_ids.

    Args:
        task: what to do; see `unseen_ray.training.user_fit.FitTask`.
        source: labels, and images by id.
        strength: inverse of the L2 penalty.

    Yields:
        (ids, (B, C) natural-log class probabilities).
    """

    def features(ids):
        return source.images(ids).reshape(len(ids), -1) / 255

    model = LogisticRegression(C=strength, max_iter=300, random_state=task.seed % 2**32)
    model.fit(features(task.train_ids), source.labels[task.train_ids])
    for ids in np.array_split(task.unseen_ids, max(len(task.unseen_ids) // 512, 1)):
        log_probs = np.full((len(ids), task.num_classes), -np.inf)
        log_probs[:, model.classes_] = model.predict_log_proba(features(ids))
        yield ids, log_probs
