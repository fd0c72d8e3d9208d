"""What a cluster can do now, after it has grown, or never; and what to do about a failure."""

from __future__ import annotations

import pytest
from ray.exceptions import RayActorError, RayTaskError

from unseen_ray.errors import ClusterError, ConfigError, FoldFailedError
from unseen_ray.execution.ray.capacity import Capacity, check_feasible, computes_alike, default_gpus, plain_nodes, slots
from unseen_ray.execution.ray.failures import Attempts, decide, failure_of, handle_failure
from unseen_ray.execution.ray.waiting import Wait
from unseen_ray.runs.tasks import Progress
from unseen_ray.training.host import PreemptedError

CPU_NODE = {"CPU": 4.0}
GPU_NODE = {"CPU": 8.0, "GPU": 2.0}
ONE_GPU = {"CPU": 1.0, "GPU": 1.0}


def test_slots_count_whole_workers_on_each_node() -> None:
    capacity = Capacity(nodes=(CPU_NODE, GPU_NODE, GPU_NODE))
    assert slots(capacity, ONE_GPU) == 4
    assert slots(capacity, {"CPU": 3.0, "GPU": 0.0}) == 1 + 2 + 2
    assert slots(capacity, {"CPU": 0.5, "GPU": 0.25}) == 16
    eight = Capacity(nodes=({"CPU": 96.0, "GPU": 8.0},))
    assert [slots(eight, {"CPU": 1.0, "GPU": share}) for share in (0.3, 0.1, 1.0, 0.6)] == [24, 80, 8, 8]


def test_plain_nodes_are_those_without_gpu_that_have_room() -> None:
    capacity = Capacity(nodes=(CPU_NODE, GPU_NODE, {"CPU": 0.5}, {}), node_ids=("a", "b", "c", "d"))
    assert plain_nodes(capacity, {"CPU": 1.0, "GPU": 0.0}) == {"a": 4}
    assert plain_nodes(capacity, {"CPU": 0.25, "GPU": 0.0}) == {"a": 16, "c": 2}
    assert plain_nodes(capacity, ONE_GPU) == {}


def test_bits_are_asked_of_one_model_of_gpu_and_of_any_that_has_the_precision_otherwise() -> None:
    first = {"precision": "bf16", "supported": ["float32", "bf16", "fp16"], "device": "NVIDIA A100-SXM4-80GB"}
    newer = {**first, "device": "NVIDIA H100 80GB HBM3"}
    older = {**first, "device": "Tesla V100-SXM2-32GB", "supported": ["float32", "fp16"]}
    assert [computes_alike(first, each, deterministic=False) for each in (first, newer, older)] == [True, True, False]
    assert [computes_alike(first, each, deterministic=True) for each in (first, newer, older)] == [True, False, False]


def test_waiting_ends_where_there_is_no_hope_and_not_while_others_hold_what_is_asked_for() -> None:
    waiting = Wait(requested="a GPU", wait_s=-1)  # any moment is too long
    for came, may_come in ((True, False), (False, True), (True, True)):
        waiting.check(came=came, may_come=may_come, is_busy=may_come, otherwise="no GPU came")
    with pytest.raises(ClusterError, match="no GPU came"):
        waiting.check(came=False, may_come=False, is_busy=False, otherwise="no GPU came")
    Wait(requested="a GPU", wait_s=60).check(came=False, may_come=False, is_busy=False, otherwise="no GPU came")


def test_folds_take_a_gpu_where_there_is_one_or_may_be_one() -> None:
    assert default_gpus(Capacity(nodes=(CPU_NODE,))) == 0
    assert default_gpus(Capacity(nodes=(CPU_NODE, GPU_NODE))) == 1
    assert default_gpus(Capacity(nodes=(CPU_NODE,), groups=(GPU_NODE,), autoscaling=True)) == 1


def test_what_fits_now_or_after_growing_is_let_through() -> None:
    check_feasible(Capacity(nodes=(GPU_NODE,)), ONE_GPU)
    check_feasible(Capacity(nodes=(CPU_NODE,), groups=(GPU_NODE,), autoscaling=True), ONE_GPU)
    check_feasible(Capacity(nodes=(CPU_NODE,), autoscaling=True), ONE_GPU)


def test_what_can_never_fit_is_refused_with_the_numbers() -> None:
    with pytest.raises(ConfigError, match="1 CPU and 1 GPU on one node, but the largest node has 4 CPU and 0 GPU"):
        check_feasible(Capacity(nodes=(CPU_NODE,)), ONE_GPU)
    with pytest.raises(ConfigError, match="the autoscaler can add none that is large enough"):
        check_feasible(Capacity(nodes=(CPU_NODE,), groups=(GPU_NODE,), autoscaling=True), {"CPU": 1.0, "GPU": 4.0})


@pytest.mark.parametrize(
    ("failure", "failed", "decision"),
    [
        ("worker lost", 1, "retry"),
        ("worker lost", 3, "retry"),
        ("worker lost", 4, "give up"),
        ("GPU failed", 3, "retry"),
        ("GPU failed", 4, "give up"),
        ("out of memory", 1, "retry"),
        ("out of memory", 2, "give up"),
        ("error", 1, "give up"),
    ],
)
def test_a_lost_worker_is_retried_and_an_error_is_not(failure: str, failed: int, decision: str) -> None:
    assert decide(failure, failed=failed, max_retries=3) == decision  # type: ignore[arg-type]


def test_no_retries_means_none() -> None:
    assert decide("worker lost", failed=1, max_retries=0) == "give up"
    assert decide("out of memory", failed=1, max_retries=0) == "give up"


def test_a_node_that_is_taken_away_with_notice_is_told_by_type_and_has_a_budget_of_its_own() -> None:
    own = RayTaskError("score", "a traceback", PreemptedError()).as_instanceof_cause()
    assert [failure_of(each) for each in (own, RayActorError(preempted=True))] == ["preempted", "preempted"]
    assert failure_of(RayActorError(error_msg="its node was preempted, as the text alone says")) == "worker lost"
    attempts = Attempts(max_retries=0, max_preemptions=2)
    handle_failure(own, "stage 0 fold 1", attempts)
    handle_failure(RayActorError(preempted=True), "stage 0 fold 1", attempts)
    with pytest.raises(
        FoldFailedError, match="taken away more than max_preemptions times in a row before it got further"
    ):
        handle_failure(own, "stage 0 fold 1", attempts)


def epoch(done: int, doing: str = "train") -> Progress:
    return Progress(task="stage 0 fold 0", node="here", device="cpu", doing=doing, done=done, total=90)  # type: ignore[arg-type]


def test_a_task_that_gets_on_is_started_again_however_often_it_is_lost() -> None:
    attempts = Attempts(max_retries=1)
    for done in range(1, 20):
        assert attempts.failed("worker lost") == "retry"
        attempts.note(epoch(done))
    attempts.note(epoch(5, "score"))
    assert attempts.failed("worker lost") == "retry"
    assert attempts.count == 20


def test_a_task_that_is_lost_at_the_same_place_is_given_up() -> None:
    attempts = Attempts(max_retries=2)
    answers = []
    for _ in range(3):
        for done in (3, 4, 5):  # from its checkpoint to where it is lost
            attempts.note(epoch(done))
        answers.append(attempts.failed("worker lost"))
    assert answers == ["retry", "retry", "give up"]


def test_a_bug_is_no_bad_luck_however_far_the_task_got() -> None:
    attempts = Attempts(max_retries=3)
    attempts.note(epoch(7))
    assert attempts.failed("error") == "give up"
