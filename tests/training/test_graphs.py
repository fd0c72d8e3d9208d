"""CUDA graphs of a training's passes: when they are taken, and that they change nothing; on a CPU with a pretended graph."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.training.fitting import TUNED, recipe, train
from unseen_ray.training import graphs
from unseen_ray.training.graphs import GraphedPasses, can_be_graphed
from unseen_ray.training.loop import trainer
from unseen_ray.training.model_task import build_model

GPU = torch.device("cuda", 0)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
PLAIN = trainer._passes


class Pretended:
    """Runs the passes again wherever a graph would be replayed, into the memory of the first time, as a graph does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, plain_s: float = 0.002, graph_s: float = 0.001) -> None:
        self.captured = self.replayed = 0
        self.fault: Callable[[Tensor], object] = lambda loss: None
        self.model = nn.Module()
        monkeypatch.setattr(trainer, "_passes", self._graphed)
        monkeypatch.setattr(graphs, "capture", self._capture)
        seconds = itertools.cycle([plain_s, graph_s])

        def measured(before: Any, passes: Callable[[], object]) -> float:
            before.drop_gradients()
            passes()
            return next(seconds)

        monkeypatch.setattr(graphs._Before, "seconds", measured)

    def _graphed(self, model: nn.Module, *args: Any, **options: Any) -> GraphedPasses:
        self.model = model
        return GraphedPasses(model, PLAIN(model, *args, **options))  # type: ignore[arg-type]

    def _capture(
        self, run: Callable[[], tuple[Tensor, Tensor]], prepare: Callable[[], None], device: torch.device
    ) -> tuple[Callable[[], None], tuple[Tensor, Tensor]]:
        self.captured += 1
        prepare()
        results = run()
        weights = list(self.model.parameters())
        gradients = [weight.grad for weight in weights]

        def replay() -> None:
            self.replayed += 1
            prepare()
            for result, again in zip(results, run(), strict=True):
                result.copy_(again)
            for mine, weight in zip(gradients, weights, strict=True):
                if mine is not None and weight.grad is not None:
                    mine.copy_(weight.grad)
            self.fault(results[0])

        return replay, results


def assert_same(model: nn.Module, other: nn.Module) -> None:
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


@pytest.mark.parametrize(
    "fields", [{}, {"drop_last": False, "batch_size": 64}, TUNED], ids=["plain", "last batch", "mixed"]
)
def test_a_fit_by_graphs_is_that_without_to_the_bit(monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]) -> None:
    plain, plain_stats = train(None, recipe(3, **fields))
    pretended = Pretended(monkeypatch)
    graphed, stats = train(None, recipe(3, **fields))
    assert pretended.captured == (2 if "drop_last" in fields else 1), "one a shape"
    assert pretended.replayed >= 3 * (600 // 64)
    assert_same(plain, graphed)
    assert [(each.loss, each.accuracy) for each in stats] == [(each.loss, each.accuracy) for each in plain_stats]


def _cannot_be_captured(loss: Tensor) -> None:
    raise RuntimeError("operation not permitted when stream is capturing\nmore lines")


@pytest.mark.parametrize(
    ("fault", "times", "said"),
    [
        (lambda loss: loss.add_(1e-6), {}, "its results are"),
        (lambda loss: loss.fill_(float("nan")), {}, "its results are nan off, those of plain passes 0"),
        (_cannot_be_captured, {}, "no: operation not permitted when stream is capturing"),
        (lambda loss: None, {"graph_s": 0.003}, "no: 3.00 ms instead of 2.00"),
        (lambda loss: None, {"plain_s": 0.03}, "no: a pass takes 30 ms"),
    ],
    ids=["other results", "nan", "not captured", "slower", "large"],
)
def test_a_graph_that_is_wrong_or_does_not_pay_is_not_taken(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fault: Callable[[Tensor], object],
    times: dict[str, float],
    said: str,
) -> None:
    plain, _ = train(None, recipe(2))
    pretended = Pretended(monkeypatch, **times)
    pretended.fault = fault
    with caplog.at_level("DEBUG", logger="unseen_ray"):
        model, _ = train(None, recipe(2))
    assert pretended.replayed <= 2, "tried, and not used"
    assert said in caplog.text
    assert_same(plain, model)


@pytest.mark.parametrize(("gib", "captured"), [(2, 0), (1, 1), (0.5, 2)])
def test_graphs_together_hold_an_eighth_of_the_memory(
    monkeypatch: pytest.MonkeyPatch, gib: float, captured: int
) -> None:
    pretended = Pretended(monkeypatch)
    monkeypatch.setattr(graphs._Before, "memory", lambda before, passes: int(gib * 2**30))
    monkeypatch.setattr(graphs, "_free", lambda device: 10 * 2**30)
    train(None, recipe(1, drop_last=False, batch_size=64))  # batches of two sizes
    assert pretended.captured == captured


@pytest.mark.parametrize("name", ["small_cnn", "resnet9", "airbench", "resnet18_cifar"])
def test_our_models_can_be_graphed(name: str) -> None:
    assert can_be_graphed(build_model(name, 10))


class _Own(nn.Module):
    pass


def _with_own_forward() -> nn.Module:
    model = nn.Linear(2, 2)
    model.forward = lambda inputs: inputs  # type: ignore[method-assign]
    return model


def _hooked(register: str) -> nn.Module:
    model = nn.Linear(2, 2)
    getattr(model, register)(lambda *_: None)
    return model


def _with_weight_hooked(register: str) -> nn.Module:
    model = nn.Linear(2, 2)
    getattr(model.weight, register)(lambda _: None)
    return model


@pytest.mark.parametrize(
    "module",
    [
        _Own(),
        _with_own_forward(),
        torch.jit.ScriptModule(),
        *map(_hooked, ("register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook")),
        *map(_with_weight_hooked, ("register_hook", "register_post_accumulate_grad_hook")),
    ],
)
def test_modules_whose_code_is_not_known_are_not_graphed(module: nn.Module) -> None:
    assert not can_be_graphed(nn.Sequential(nn.Linear(2, 2), module))


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("precision", ["float32", "bf16", "fp16"])
def test_on_a_gpu_graphs_are_taken_and_change_no_bit(precision: str, caplog: pytest.LogCaptureFixture) -> None:
    settings = {"precision": precision, "deterministic": True}
    plain, _ = train(None, recipe(3, cuda_graphs=False, **settings), device=GPU)
    with caplog.at_level("DEBUG", logger="unseen_ray"):
        graphed, _ = train(None, recipe(3, **settings), device=GPU)
    assert "CUDA graph for batches of" in caplog.text
    assert ": yes: " in caplog.text
    assert_same(plain, graphed)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("within", ["warm-up", "capture"])
def test_on_a_gpu_passes_that_wait_for_it_are_refused_and_leave_the_stream(within: str) -> None:
    ones = torch.ones(2, device=GPU)

    def run() -> tuple[Tensor, Tensor]:
        if within == "warm-up" or torch.cuda.is_current_stream_capturing():
            ones.sum().item()
        return ones + 1, ones + 2

    for _ in range(2):
        with pytest.raises(RuntimeError):
            graphs.capture(run, lambda: None, GPU)
        assert torch.cuda.current_stream(GPU) == torch.cuda.default_stream(GPU)
        assert torch.cuda.get_sync_debug_mode() == 0
