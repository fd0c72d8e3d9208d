"""How close training comes to the hardware: images a second of four loops that do the same steps, interleaved in one run.

    a  usual   torchvision transforms on PIL images, one by one, through a DataLoader; float32
    b  bare    normalised images in memory, same number format and memory layout as ours, no augmentation
    c  ours    `training.fit` on uint8 pixels, crop and flip, checkpoints
    d  ray     ours in an actor as folds have one, its pixels in the object store, asked for an epoch at a time

    e  bare    forward passes alone, over normalised images in memory
    f  ours    `training.predict`

python benchmarks/train_speed.py --json benchmarks/results/train_speed_cpu_1thread.json
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import Round, conditions, interleaved, quartiles, ratio, write
from torch import Tensor, nn

from unseen_ray.config.recipe import Recipe
from unseen_ray.data.images.pixel_store import MemoryPixelStore
from unseen_ray.storage.filesystem import Folder
from unseen_ray.training.hardware import numerics, resolve_precision
from unseen_ray.training.loop.batches import BatchLoader, hold_pixels, measure
from unseen_ray.training.loop.checkpoints import Checkpoints
from unseen_ray.training.loop.fit import FitPlan, fit
from unseen_ray.training.loop.predict import predict
from unseen_ray.training.loop.trainer import autocast
from unseen_ray.training.model_task import build_model

CLASSES = 10


@dataclass(frozen=True)
class Case:
    """A model at an image size; a round trains `steps` batches (the usual loop a third of them), and scores as many images."""

    model: str
    size_px: int
    steps: int
    batch: int = 64

    @property
    def name(self) -> str:
        return f"{self.model}@{self.size_px}"

    @property
    def images(self) -> int:
        return self.steps * self.batch

    @property
    def scored(self) -> int:
        return max(self.images, 128)


CPU_CASES = [
    Case("small_cnn", 32, 48),
    Case("resnet9", 32, 5),
    Case("resnet18_cifar", 32, 4),
    Case("resnet18_cifar", 64, 1),
]
GPU_CASES = [Case("small_cnn", 32, 400, 512), Case("resnet9", 32, 100, 512), Case("resnet18_cifar", 32, 60, 512)]


def pixels(case: Case, count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, case.size_px, case.size_px, 3), np.uint8), rng.integers(0, CLASSES, count)


def usual_images(case: Case) -> int:
    return max(case.steps // 3, 1) * case.batch


def recipe(case: Case, precision: str) -> Recipe:
    """So many epochs that a benchmark never comes to the end of them."""
    return Recipe(epochs=100_000, min_steps=0, batch_size=case.batch, precision=precision, augment="crop_flip")


def model_for(case: Case, device: torch.device) -> nn.Module:
    torch.manual_seed(0)
    return build_model(case.model, CLASSES).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def normalised(images: np.ndarray, device: torch.device) -> Tensor:
    inputs = torch.from_numpy(images).to(device).float().sub_(127).div_(64).permute(0, 3, 1, 2)
    return inputs.contiguous(memory_format=torch.channels_last)


def usual(case: Case, device: torch.device, workers: int) -> Round:
    """What research code does, and torchvision's CIFAR10: every image is transformed on its own."""
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset
    from torchvision import transforms

    images, labels = pixels(case, usual_images(case))
    change = transforms.Compose(
        [
            transforms.RandomCrop(case.size_px, padding=case.size_px // 8),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.5,) * 3, (0.25,) * 3),
        ]
    )

    class Images(Dataset):
        def __len__(self) -> int:
            return len(images)

        def __getitem__(self, place: int) -> tuple[Tensor, int]:
            return change(Image.fromarray(images[place])), int(labels[place])

    loader = DataLoader(Images(), case.batch, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    model = build_model(case.model, CLASSES).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, nesterov=True)
    criterion = nn.CrossEntropyLoss()

    def one_round() -> None:
        model.train()
        for inputs, targets in loader:
            loss = criterion(model(inputs.to(device)), targets.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        wait(device)

    return one_round


def bare(case: Case, device: torch.device, precision: str) -> Round:
    """Nothing but the steps: the images are normalised before, and stay as they are."""
    images, labels = pixels(case, case.images)
    inputs, targets = normalised(images, device), torch.from_numpy(labels).to(device)
    model, settings = model_for(case, device), recipe(case, precision)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, nesterov=True, fused=True)
    criterion = nn.CrossEntropyLoss()

    def one_round() -> None:
        model.train()
        order = torch.randperm(len(inputs), device=device)
        for picked in order.split(case.batch):
            with autocast(settings, device):
                loss = criterion(model(inputs[picked]).float(), targets[picked])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        wait(device)

    return one_round


class Paced:
    """Our training on the images that have labels, an epoch a call, for ever.

    A round is far shorter than an epoch of real data: a checkpoint that a thread writes beside it is waited for off the clock.
    """

    def __init__(
        self, case: Case, images: np.ndarray, labels: np.ndarray, folder: str, device: torch.device, precision: str
    ) -> None:
        ids, pixel_store = np.arange(len(labels)), MemoryPixelStore(images)
        plan = FitPlan(ids_M=ids, labels_M=labels, num_classes=CLASSES, recipe=recipe(case, precision), seed=0)
        feed = BatchLoader(hold_pixels(pixel_store, device), measure(pixel_store, ids))
        self._device = device
        self._checkpoints = Checkpoints(Folder(folder), case.name, beside=device.type == "cuda")
        self.model = model_for(case, device)
        self._epochs = fit(self.model, feed, plan, self._checkpoints)

    def epoch(self) -> float:
        """Train one; its loss."""
        loss = float(next(self._epochs).loss)
        wait(self._device)
        return loss

    def settle(self) -> None:
        """Wait for the checkpoint."""
        self._checkpoints.flush()


class PacedFold(Paced):
    """The same with the numerics of a fit for as long as it lives: in a process of its own, whose allocator they change."""

    def __init__(
        self,
        case: Case,
        images: np.ndarray,
        labels: np.ndarray,
        folder: str,
        threads: int,
        device: torch.device | None = None,
    ) -> None:
        if device is None:
            from unseen_ray.execution.ray.actors import device_of_actor

            device = device_of_actor()
        self._numerics = numerics(threads, False, device)
        self._numerics.__enter__()
        super().__init__(case, images, labels, folder, device, resolve_precision("auto", device))


class Apart:
    """A `PacedFold` in a process of its own, without Ray."""

    def __init__(self, *given: Any) -> None:
        self.pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_begin, initargs=given)

    def epoch(self) -> object:
        return self.pool.submit(_call, "epoch").result()

    def settle(self) -> None:
        self.pool.submit(_call, "settle").result()

    def close(self) -> None:
        self.pool.shutdown()


_FOLD: list[PacedFold] = []  # of a process of `Apart`


def _begin(*given: Any) -> None:
    _FOLD.append(PacedFold(*given))


def _call(method: str) -> object:
    return getattr(_FOLD[0], method)()


def fold_actor(case: Case, threads: int, gpus: float, folder: str) -> Any:
    import ray

    images, labels = pixels(case, case.images)
    options = {"num_cpus": threads, "num_gpus": gpus}
    return ray.remote(PacedFold).options(**options).remote(case, ray.put(images), ray.put(labels), folder, threads)


def bare_forward(case: Case, device: torch.device, precision: str) -> Round:
    images, _ = pixels(case, case.scored)
    inputs, model, settings = normalised(images, device), model_for(case, device).eval(), recipe(case, precision)

    def one_round() -> None:
        for batch in inputs.split(2 * case.batch):
            with torch.inference_mode(), autocast(settings, device):
                torch.log_softmax(model(batch).float(), dim=1).cpu()

    return one_round


def our_scoring(case: Case, device: torch.device, precision: str) -> Round:
    images, _ = pixels(case, case.scored)
    ids, pixel_store = np.arange(len(images)), MemoryPixelStore(images)
    feed, model = BatchLoader(hold_pixels(pixel_store, device), measure(pixel_store, ids)), model_for(case, device)

    def one_round() -> None:
        for _ in predict(model, feed, ids, recipe(case, precision)):
            pass

    return one_round


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_case(case: Case, args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    if not args.no_ray:
        import ray

    precision = resolve_precision("auto", device)
    with tempfile.TemporaryDirectory() as here, tempfile.TemporaryDirectory() as there:
        paced = Apart(case, *pixels(case, case.images), here, args.threads, device)
        training: dict[str, Round] = {
            "a": usual(case, device, args.loader_workers),
            "b": bare(case, device, precision),
            "c": paced.epoch,
        }
        actor = None if args.no_ray else fold_actor(case, args.threads, float(device.type == "cuda"), there)
        if actor is not None:
            training["d"] = lambda: ray.get(actor.epoch.remote())

        def settle() -> None:
            paced.settle()
            if actor is not None:
                ray.get(actor.settle.remote())

        trained = interleaved(training, rounds=args.rounds, most=args.most, settle=settle)
        scoring = {"e": bare_forward(case, device, precision), "f": our_scoring(case, device, precision)}
        scored = interleaved(scoring, rounds=args.rounds, most=args.most)
        paced.close()
        if actor is not None:
            ray.kill(actor)
    share = usual_images(case) / case.images
    trained["a"] = [seconds / share for seconds in trained["a"]]
    speeds = {name: quartiles([case.images / s for s in seconds]) for name, seconds in trained.items()}
    speeds |= {name: quartiles([case.scored / s for s in seconds]) for name, seconds in scored.items()}
    ratios = {"c/a": ratio(trained, "c", "a"), "c/b": ratio(trained, "c", "b"), "f/e": ratio(scored, "f", "e")}
    if "d" in trained:
        ratios["d/c"] = ratio(trained, "d", "c")
    rounds = {"training": len(trained["a"]), "scoring": len(scored["e"])}
    return {"precision": precision, "rounds": rounds, "images_per_s": speeds, "ratios": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="rounds at least")
    parser.add_argument("--most", type=int, default=30, help="rounds at most, while quartiles lie 5 %% apart")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each loop")
    on_gpu = torch.cuda.is_available()
    parser.add_argument(
        "--loader-workers", type=int, default=8 if on_gpu else 0, help="processes of the usual loop's DataLoader"
    )
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--no-ray", action="store_true", help="leave d out")
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device("cuda", 0) if on_gpu else torch.device("cpu")
    torch.backends.cudnn.benchmark = True
    if not args.no_ray:
        import ray

        ray.init(address="local", num_cpus=args.threads, include_dashboard=False, log_to_driver=False)
    report: dict[str, Any] = {"conditions": conditions(device, args), "cases": {}}
    for case in GPU_CASES if device.type == "cuda" else CPU_CASES:
        if args.only in case.name:
            report["cases"][case.name] = found = measure_case(case, args, device)
            speeds = "  ".join(f"{name} {value['median']:g}" for name, value in found["images_per_s"].items())
            ratios = "  ".join(
                f"{name} {v['median']:.3f} ({v['q1']:.3f} to {v['q3']:.3f})" for name, v in found["ratios"].items()
            )
            print(f"{case.name}: images/s {speeds}\n    {ratios}", flush=True)
            write(args.json, report)


if __name__ == "__main__":
    main()
