"""The old name of load_data.py."""

from trainer.ranks.load_data import load_data as load_on_all_ranks

__all__ = ["load_on_all_ranks"]
