"""The passes of a small model as one CUDA graph, which the CPU launches at once, where that is as exact and faster."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from unseen_ray.training.hardware import synchronize

__all__ = ["GraphedPasses", "Passes", "can_be_graphed", "capture"]

logger = logging.getLogger(__name__)

Passes = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Forward and backward pass over inputs and targets: gives the loss and the logits, and leaves gradients in weights that had none."""

_WARM_UP = 3  # passes in which libraries choose their kernels, which they may not do within a capture
_TIMED = 5
_FAR = 0.01  # of a tensor's largest value
_LONG_S = 0.02  # of a pass: launching its kernels takes a tenth of it at most
_ROOM = 1 / 8  # of the free memory: graphs hold all that their passes take of it until the end of the fit
_capturing = threading.Lock()  # torch takes one capture at a time in a process
_OWN = ("torch.nn.", "torchvision.", "unseen_ray.")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_WEIGHT_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")


def can_be_graphed(model: nn.Module) -> bool:
    """Whether a graph can stand for the model's Python code: that of a user may decide anew in each step, which a graph does not."""
    return all(_is_ours(module) for module in model.modules()) and not any(
        getattr(weight, hooks) for weight in model.parameters() for hooks in _WEIGHT_HOOKS
    )


def _is_ours(module: nn.Module) -> bool:
    is_as_made = "forward" not in vars(module) and not any(getattr(module, hooks) for hooks in _HOOKS)
    return is_as_made and type(module).__module__.startswith(_OWN)


@dataclass(slots=True, eq=False)
class GraphedPasses:
    """Passes that are replayed from a graph, for each shape of batch for which its first batch shows that to be right and faster.

    Right is a graph that gives the loss, logits, gradients and statistics of the passes themselves to the bit; where these differ
    from themselves when repeated, as some kernels do, one that is about as close.

    Attributes:
        model: in training, on its device.
        run: its passes.
    """

    model: nn.Module
    run: Passes
    _graphs: dict[tuple[object, ...], _Graph | None] = field(default_factory=dict)
    _held: int = 0  # bytes, by the graphs together

    def __call__(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """As `run`; what it gives is overwritten by the next call."""
        shape = inputs.shape, targets.shape, targets.dtype
        if shape not in self._graphs:
            self._graphs[shape] = self._graph_if_it_pays(inputs, targets)
        graph = self._graphs[shape]
        return self.run(inputs, targets) if graph is None else graph(inputs, targets)

    def _graph_if_it_pays(self, inputs: Tensor, targets: Tensor) -> _Graph | None:
        """Everything that training changes is as before afterwards."""
        before = _Before(self.model, inputs.device)
        try:
            graph, said = self._tried(before, inputs, targets)
        except RuntimeError as error:  # a kernel that no capture takes, or no memory
            graph, said = None, str(error).strip().partition("\n")[0]
        before.restore()
        logger.debug("CUDA graph for batches of %d: %s: %s", len(inputs), "no" if graph is None else "yes", said)
        return graph

    def _tried(self, before: _Before, inputs: Tensor, targets: Tensor) -> tuple[_Graph | None, str]:
        def passes() -> tuple[Tensor, Tensor]:
            return self.run(inputs, targets)

        for _ in range(_WARM_UP):
            before.drop_gradients()
            passes()
        plain_s, needed = before.seconds(passes), before.memory(passes)
        if plain_s > _LONG_S:
            return None, f"a pass takes {1000 * plain_s:.0f} ms"
        if self._held + needed > _ROOM * _free(inputs.device):
            return None, f"it would hold {needed / 2**30:.1f} GiB, beside {self._held / 2**30:.1f} GiB of others"
        first, second = before.after(passes), before.after(passes)
        graph = _Graph.of(before, self.run, inputs, targets)
        replayed = before.after(lambda: graph(inputs, targets))
        off, own = _distance(first, replayed), _distance(first, second)
        if not off <= min(4 * own, _FAR):
            return None, f"its results are {off:.2g} off, those of plain passes {own:.2g}"
        graph_s = before.seconds(lambda: graph(inputs, targets))
        said = f"{1000 * graph_s:.2f} ms instead of {1000 * plain_s:.2f}"
        if graph_s >= plain_s:
            return None, said
        self._held += needed
        return graph, said


@dataclass(slots=True, eq=False)
class _Graph:
    """A captured pair of passes: what it reads, and what it writes, in memory of its own."""

    inputs: Tensor
    targets: Tensor
    weights: list[nn.Parameter]
    replay: Callable[[], None]
    results: tuple[Tensor, Tensor]
    gradients: list[Tensor | None]

    @classmethod
    def of(cls, before: _Before, run: Passes, inputs: Tensor, targets: Tensor) -> _Graph:
        own = inputs.clone(), targets.clone()
        before.restore()
        replay, results = capture(lambda: run(*own), before.drop_gradients, inputs.device)
        weights = list(before.model.parameters())
        return cls(*own, weights, replay, results, [weight.grad for weight in weights])

    def __call__(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        self.inputs.copy_(inputs)
        self.targets.copy_(targets)
        self.replay()
        for weight, gradient in zip(self.weights, self.gradients, strict=True):
            weight.grad = gradient
        return self.results


def capture(
    run: Callable[[], tuple[Tensor, Tensor]], prepare: Callable[[], None], device: torch.device
) -> tuple[Callable[[], None], tuple[Tensor, Tensor]]:
    """Capture what `run` launches; returns what launches it again, and the results, which that overwrites.

    Args:
        run: what to capture; it is run a few times before.
        prepare: called before each.
        device: a CUDA device.

    Raises:
        RuntimeError: of torch, if it does something that cannot be captured.
    """
    graph, stream = torch.cuda.CUDAGraph(), _capture_stream(device)
    with _capturing, torch.cuda.device(device):
        stream.wait_stream(torch.cuda.current_stream())
        try:
            # Around the capture: where that fails, torch leaves its stream the current one.
            with torch.cuda.stream(stream):
                with _refusing_waits():
                    for _ in range(_WARM_UP):
                        prepare()
                        run()
                prepare()
                # batches of this process are copied by other threads meanwhile, which may allocate
                with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                    results = run()
        finally:
            torch.cuda.current_stream().wait_stream(stream)
    return graph.replay, results


@functools.cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all fits of a process: cuBLAS keeps a workspace for each stream that it was ever used on."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def _refusing_waits() -> Iterator[None]:
    """Within, what waits for the GPU is a RuntimeError, as in a capture: one that it breaks off leaves torch 2.11 unable to free memory."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


class _Before:
    """What passes change of a model, as it was before them: its statistics, and the generators that it draws from."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.model, self._device = model, device
        self._buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
        self._cpu, self._cuda = torch.get_rng_state(), None
        if device.type == "cuda":
            self._cuda = torch.cuda.get_rng_state(device)

    def drop_gradients(self) -> None:
        for weight in self.model.parameters():
            weight.grad = None

    @torch.no_grad()
    def restore(self) -> None:
        self.drop_gradients()
        for buffer, value in self._buffers:
            buffer.copy_(value)
        torch.set_rng_state(self._cpu)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda, self._device)

    def after(self, passes: Callable[[], tuple[Tensor, Tensor]]) -> list[Tensor]:
        """All that passes leave, begun from here: results, gradients and statistics."""
        self.restore()
        results = passes()
        gradients = [weight.grad for weight in self.model.parameters() if weight.grad is not None]
        return [tensor.detach().clone() for tensor in (*results, *gradients, *self.model.buffers())]

    def seconds(self, passes: Callable[[], object]) -> float:
        """Mean time of passes, one after the other."""
        synchronize(self._device)
        began = time.perf_counter()
        for _ in range(_TIMED):
            self.drop_gradients()
            passes()
        synchronize(self._device)
        return (time.perf_counter() - began) / _TIMED

    def memory(self, passes: Callable[[], object]) -> int:
        """Most bytes that passes take at a time, gradients included; 0 on a CPU, where no graph holds any."""
        if self._device.type != "cuda":
            return 0
        self.drop_gradients()
        torch.cuda.reset_peak_memory_stats(self._device)
        allocated = torch.cuda.memory_allocated(self._device)
        passes()
        return torch.cuda.max_memory_allocated(self._device) - allocated


def _free(device: torch.device) -> float:
    """Bytes of a device that can still be allocated, torch's cache included."""
    if device.type != "cuda":
        return float("inf")
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def _distance(ones: list[Tensor], others: list[Tensor]) -> float:
    """The largest difference of two lists of tensors, as a share of the largest value of the tensor; 0 for the same bits."""
    if len(ones) != len(others):
        return float("inf")
    shares = [
        torch.where(one == other, 0.0, (one.double() - other.double()).abs() / one.double().abs().max())
        for one, other in zip(ones, others, strict=True)
    ]
    return float(torch.stack([share.max() for share in shares if share.numel()]).max())
