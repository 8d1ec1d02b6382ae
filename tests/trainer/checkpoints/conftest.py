"""Run directories that are given back after a test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from configs.schema import RunConfig
from configs.schema_training import OptimizerConfig
from tests.support.run_directories import release
from trainer.checkpoints.run_directory import RunDirectory


@pytest.fixture
def opened() -> Iterator[list[RunDirectory]]:
    """Run directories whose locks are given back after the test."""
    directories: list[RunDirectory] = []
    yield directories
    for directory in directories:
        release(directory)


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return RunConfig(output_dir=str(tmp_path), name="run", optimizer=OptimizerConfig(lr=0.1))
