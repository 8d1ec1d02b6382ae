"""The command `convoy`, and `python -m convoy`."""

from __future__ import annotations

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends what imports, without a traceback

from launch.commands import main

if __name__ == "__main__":
    main()
