"""What the events of a trace say about where time went."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from trainer.profiling.events import (
    BACKWARD,
    BETWEEN,
    COMPILED,
    DATA,
    FORWARD,
    IDLE,
    METRICS,
    OPTIMIZER,
    REDUCTION,
    STEP,
    Breakdown,
    break_down,
)
from trainer.profiling.summary import Facts, markdown, utilisation
from trainer.profiling.trace import Event, read_trace

MAIN, AUTOGRAD, GLOO = 1, 2, 3
NODE = "autograd::engine::evaluate_function: AddmmBackward0"


def op(name: str, start: float, stop: float, thread: int = MAIN, link: int | None = None) -> Event:
    return Event(name, "cpu_op", thread, start, stop, link)


def note(name: str, start: float, stop: float, thread: int = MAIN) -> Event:
    return Event(name, "user_annotation", thread, start, stop)


def kernel(name: str, start: float, stop: float, link: int | None) -> Event:
    return Event(name, "kernel", "stream 7", start, stop, link)


def parts(*events: Event, stop: float = 100) -> dict[str, float]:
    """Microseconds of each part of one step that lasts from 0 to `stop`."""
    found = break_down([note(f"{STEP}0", 0, stop), *events])
    assert sum(found.seconds.values()) == pytest.approx(found.total_seconds)
    assert found.total_seconds == pytest.approx(stop / 1e6)
    return {part: round(s * 1e6, 6) for part, s in found.seconds.items() if s}


def test_a_step_of_autograd_is_divided_by_names_and_order() -> None:
    """Law: each moment belongs to one part; what no operator covers is idle."""
    assert parts(
        note("step/data", 0, 10),
        op("aten::index_select", 2, 8),
        op("aten::addcmul", 10, 14),
        note("Optimizer.zero_grad#Adam.zero_grad", 14, 15),
        op("aten::linear", 15, 30),
        op("aten::addmm", 16, 28),
        op("aten::cross_entropy_loss", 30, 35),
        op(NODE, 40, 60),
        op("aten::mm", 42, 58),
        op("aten::argmax", 60, 62),
        op("aten::eq", 62, 63),
        op("aten::sum", 63, 65),
        op("aten::_foreach_norm", 65, 67),
        op("aten::clamp", 67, 68),
        note("Optimizer.step#Adam.step", 70, 90),
        op("aten::_fused_adam_", 72, 88),
        op("aten::_foreach_lerp_", 90, 92),
    ) == {
        DATA: 10,
        FORWARD: 24,
        BACKWARD: 20,
        METRICS: 5,
        OPTIMIZER: 1 + 3 + 20 + 2,
        IDLE: 5 + 2 + 8,
    }


def test_a_second_micro_batch_begins_with_its_data() -> None:
    """Under accumulation operators after a backward pass are forward again once data has come."""
    micro = [
        (note("step/data", s, s + 5), op("aten::addmm", s + 5, s + 10), op(NODE, s + 10, s + 20))
        for s in (0, 20)
    ]
    assert parts(*micro[0], *micro[1], stop=40) == {DATA: 10, FORWARD: 10, BACKWARD: 20}


def test_passes_that_are_written_out_are_told_apart() -> None:
    """Without autograd the backward pass begins where softmax becomes a gradient."""
    assert parts(
        note("step/data", 0, 5),
        op("aten::random_", 5, 8),
        op("aten::addmm", 8, 20),
        op("aten::log_softmax", 20, 22),
        op("aten::argmax", 22, 24),
        op("aten::sum", 24, 25),
        op("aten::exp", 25, 26),
        op("aten::scatter_add_", 26, 27),
        op("aten::addmm", 27, 50),
        op("aten::threshold_backward", 50, 53),
        op("aten::addmm", 53, 60),
        op("c10d::allreduce_", 60, 70),
        op("aten::_foreach_add_", 80, 81),
        op("aten::_fused_adam_", 81, 95),
    ) == {
        DATA: 5,
        FORWARD: 17,
        METRICS: 3,
        BACKWARD: 35,
        REDUCTION: 10,
        OPTIMIZER: 15,
        IDLE: 15,
    }


def test_a_part_of_the_gradient_on_its_way_hides_behind_the_first_layer() -> None:
    """Passes written out send a part, and go on; the next step of a row begins with a product."""
    events = [
        op("aten::addmm", 0, 10),
        op("aten::exp", 10, 11),
        op("aten::addmm", 11, 20),
        op("c10d::allreduce_", 20, 22),
        note("gloo:all_reduce", 21, 55, thread=GLOO),
        op("aten::sum", 23, 24),
        op("aten::addmm", 24, 44),
        op("c10d::allreduce_", 44, 45),
        note("gloo:all_reduce", 45, 54, thread=GLOO),
        op("aten::_fused_adam_", 55, 65),
        op("aten::_addmm_activation", 65, 75),
        op("aten::exp", 75, 80),
    ]
    assert parts(*events, stop=80) == {
        FORWARD: 10 + 10,
        BACKWARD: 1 + 9 + 20 + 5,
        REDUCTION: 2 + 1 + 1 + 1 + 10,
        OPTIMIZER: 10,
    }
    found = break_down([note(f"{STEP}0", 0, 80), *events])
    assert found.hidden_reduction_seconds * 1e6 == pytest.approx(20)


def test_a_whole_step_in_one_region_is_not_divided() -> None:
    """Law: what cannot be known is called so, but for what names itself inside."""
    assert parts(
        op("Torch-Compiled Region: 0/0", 10, 90),
        op("## Call CompiledFxGraph abc ##", 20, 80),
        op("aten::addmm", 30, 40),
        op("aten::_fused_adam_", 50, 60),
    ) == {COMPILED: 70, OPTIMIZER: 10, IDLE: 20}


def test_a_compiled_forward_pass_beside_autograd_is_forward() -> None:
    assert parts(
        op("Torch-Compiled Region: 0/0", 0, 40),
        op("CompiledFunction", 5, 35),
        op("autograd::engine::evaluate_function: CompiledFunctionBackward", 50, 100),
        op("## Call CompiledFxGraph abc ##", 55, 95),
    ) == {FORWARD: 40, BACKWARD: 50, IDLE: 10}


def test_an_engine_can_say_what_it_does() -> None:
    """A region `step/PART` is that part, whatever runs inside."""
    assert parts(
        note("step/forward", 0, 30), note("step/backward", 30, 80), op("aten::addmm", 40, 70)
    ) == {FORWARD: 30, BACKWARD: 50, IDLE: 20}


def test_waiting_for_ranks_is_reduction_and_the_rest_of_it_is_hidden() -> None:
    """gloo runs on a thread of its own, and its event ends late: only the wait counts."""
    events = [
        op("aten::addmm", 0, 20),
        op(NODE, 20, 30),
        op("torch::distributed::reducer::mul_out", 25, 26),
        op("c10d::allreduce_", 26, 28),
        note("gloo:all_reduce", 27, 90, thread=GLOO),
        op(NODE, 30, 50),
        op("aten::as_strided", 70, 71),
        note("Optimizer.step#Adam.step", 80, 100),
    ]
    assert parts(*events) == {
        FORWARD: 20,
        BACKWARD: 10 - 3 + 20,
        REDUCTION: 3 + 20,
        METRICS: 1,
        IDLE: 9,
        OPTIMIZER: 20,
    }
    found = break_down([note(f"{STEP}0", 0, 100), *events])
    assert found.hidden_reduction_seconds * 1e6 == pytest.approx(2 + 20)


def test_an_exchange_that_is_waited_for_is_reduction() -> None:
    """Exact reduction sends and receives, waits, and adds: all of it is reduction."""
    assert parts(
        op(NODE, 0, 20),
        op("c10d::send", 20, 22),
        note("gloo:send", 21, 39, thread=GLOO),
        op("c10d::recv_", 22, 24),
        op("aten::add", 40, 45),
        op("aten::_fused_adam_", 50, 100),
    ) == {BACKWARD: 20, REDUCTION: 4 + 16 + 5, IDLE: 5, OPTIMIZER: 50}


def test_time_between_steps_is_a_part_of_its_own() -> None:
    """Operators of an evaluation between two steps do not count as forward."""
    found = break_down(
        [
            note(f"{STEP}7", 0, 10),
            op("aten::addmm", 0, 10),
            op("aten::addmm", 12, 18),
            note(f"{STEP}8", 20, 30),
            op("aten::addmm", 20, 25),
        ]
    )
    microseconds = {part: round(s * 1e6) for part, s in found.seconds.items() if s}
    assert microseconds == {FORWARD: 15, BETWEEN: 10, IDLE: 5}


def test_on_a_gpu_time_is_the_kernels() -> None:
    """Kernels belong with their launchers; NCCL counts where nothing else runs beside it."""
    events = [
        op("aten::addmm", 0, 2, link=1),
        op(NODE, 2, 6, thread=AUTOGRAD),
        op("aten::mm", 3, 5, thread=AUTOGRAD, link=2),
        note("Optimizer.step#Adam.step", 6, 9),
        op("aten::_fused_adam_", 7, 8, link=3),
        kernel("ampere_sgemm", 10, 30, 1),
        kernel("ampere_sgemm", 30, 60, 2),
        kernel("ncclDevKernel_AllReduce_Sum_f32_RING_LL", 40, 70, None),
        kernel("multi_tensor_apply_kernel", 70, 85, 3),
        kernel("replayed from a graph", 90, 95, None),
    ]
    assert parts(*events) == {
        FORWARD: 20,
        BACKWARD: 30,
        REDUCTION: 10,
        OPTIMIZER: 15,
        COMPILED: 5,
        IDLE: 20,
    }
    found = break_down([note(f"{STEP}0", 0, 100), *events])
    assert found.on_device
    assert found.hidden_reduction_seconds * 1e6 == pytest.approx(20)


def test_own_time_of_operators_leaves_out_what_ran_inside() -> None:
    found = break_down(
        [note(f"{STEP}0", 0, 100), op("aten::linear", 0, 50), op("aten::addmm", 10, 40)]
    )
    assert [(o.name, o.calls, round(o.seconds * 1e6)) for o in found.operators] == [
        ("aten::addmm", 1, 30),
        ("aten::linear", 1, 20),
    ]


def test_a_trace_without_steps_is_refused() -> None:
    with pytest.raises(ValueError, match=STEP):
        break_down([op("aten::addmm", 0, 1)])


@pytest.mark.parametrize("suffix", ["json", "json.gz"])
def test_a_chrome_trace_is_read(tmp_path: Path, suffix: str) -> None:
    """Complete events only; flows and names of threads are not time."""
    content = {
        "traceEvents": [
            {"ph": "M", "name": "process_name", "pid": 1},
            {"ph": "X", "cat": "cpu_op", "name": "aten::mm", "tid": 4, "ts": 1.5, "dur": 2}
            | {"args": {"External id": 9}},
            {"ph": "f", "name": "fwdbwd", "ts": 3},
        ]
    }
    raw = json.dumps(content).encode()
    path = tmp_path / f"trace.{suffix}"
    path.write_bytes(gzip.compress(raw) if suffix.endswith("gz") else raw)
    assert read_trace(path) == [Event("aten::mm", "cpu_op", 4, 1.5, 3.5, 9)]


def test_utilisation_is_flops_over_time_and_peak() -> None:
    """MFU by the time without the profiler where it is known; the page says all of it."""
    facts = Facts(
        runs_as="runs as: itself",
        global_batches=(10, 12),
        rank=0,
        world_size=2,
        device="CPU",
        dtype="float32",
        plain_step_seconds=0.5,
        step_flops=1_000_000,
        peak_flops_per_second=4e6,
    )
    seconds = {DATA: 0.5, FORWARD: 1.0, BACKWARD: 1.5, REDUCTION: 0.0, OPTIMIZER: 1.0, IDLE: 0.0}
    found = Breakdown(False, seconds, 4.0, 0.25, ())
    assert utilisation(found, facts) == pytest.approx(0.5)
    page = markdown(found, facts)
    assert "Steps 11 to 12" in page
    assert "utilisation 50.0%" in page
    assert "0.0 µs a step exposed" in page
    assert "125000.0 µs hidden behind what was computed meanwhile (100%)" in page
    assert f"| {DATA} " in page
    assert f"| {IDLE}" not in page
