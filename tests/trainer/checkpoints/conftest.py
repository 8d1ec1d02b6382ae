"""Run directories that are given back after a test."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.schema import RunConfig
from configs.schema_training import OptimizerConfig


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return RunConfig(output_dir=str(tmp_path), name="run", optimizer=OptimizerConfig(lr=0.1))
