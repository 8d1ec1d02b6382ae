"""Where the data lives: on the device that trains, or in host memory."""

from __future__ import annotations

from typing import Any

import pytest

from configs.errors import InputError
from configs.schema import DataConfig
from data.loading.host_loader import HostLoader
from data.loading.loader import build_loader, placement
from data.loading.resident_loader import ResidentLoader
from tests.support.loading import CPU, NUM_TEST, NUM_TRAIN, PerSample, make_arrays, make_plan

NUM_BYTES = (NUM_TRAIN + NUM_TEST) * (3 * 2 + 8)
"""Bytes of the pixels and the int64 targets."""


@pytest.mark.parametrize(
    ("options", "free_bytes", "on_device", "reason"),
    [
        ({}, None, True, "already"),
        ({}, 4 * NUM_BYTES, True, "at most 25%"),
        ({}, 4 * NUM_BYTES - 1, False, "more than 25%"),
        ({"placement": "device"}, 0, True, "data.placement is device"),
        ({"placement": "host"}, None, False, "data.placement is host"),
        ({"workers": 1}, 4 * NUM_BYTES, False, "data.workers is 1"),
    ],
)
def test_arrays_live_on_a_device_with_four_times_their_size_free(
    options: dict[str, Any], free_bytes: int | None, on_device: bool, reason: str
) -> None:
    found, why = placement(
        DataConfig(**options), [make_arrays(NUM_TRAIN), make_arrays(NUM_TEST)], free_bytes
    )
    assert found == on_device
    assert reason in why


@pytest.mark.parametrize("free_bytes", [None, 1 << 40])
def test_data_read_sample_by_sample_never_live_on_the_device(free_bytes: int | None) -> None:
    data = PerSample(NUM_TRAIN), PerSample(NUM_TEST)
    assert placement(DataConfig(), data, free_bytes)[0] is False
    with pytest.raises(InputError, match=r"data\.placement: given 'device'"):
        placement(DataConfig(placement="device"), data, free_bytes)


def test_a_placement_that_was_decided_is_not_decided_again() -> None:
    for on_device, kind in ((True, ResidentLoader), (False, HostLoader)):
        config = DataConfig(placement="host" if on_device else "device")
        data = make_arrays(NUM_TRAIN), {"test": make_arrays(NUM_TEST)}
        loader = build_loader(config, *data, plan=make_plan(), device=CPU, on_device=on_device)
        assert isinstance(loader, kind)
