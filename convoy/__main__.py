"""The command `convoy`, and `python -m convoy`."""

from __future__ import annotations

from launch.commands import main

if __name__ == "__main__":
    main()
