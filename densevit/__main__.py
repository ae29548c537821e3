"""Run a command: `python -m densevit`, and the programs `densevit` and `densevit-sweep`.

The imports of the commands take some tenths of a second. Before them, Ctrl-C is provided for, and
output that is closed or not in UTF-8.
"""

import os
import signal
import sys
from types import FrameType


def main() -> int:
    """Run the command `densevit` and return its exit code."""
    return _run("densevit")


def main_sweep() -> int:
    """Run the command `densevit-sweep` and return its exit code."""
    return _run("densevit-sweep")


def _run(program: str) -> int:
    def stop(_number: int, _frame: FrameType | None) -> None:
        """End at once: an exception could be lost in a module that is being imported."""
        os.write(2, f"{program}: stopped before anything was started\n".encode())
        os._exit(75)  # EXIT_CARRY_ON

    if __name__ != "__main__":  # else `python -m` in this folder, whose modules are meant
        # The processes that we start look for no module in the current folder, which may be shared.
        os.environ.setdefault("PYTHONSAFEPATH", "1")
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, stop)
    from densevit.utils.streams import prepare_streams

    prepare_streams()
    from densevit.cli import main as commands

    signal.signal(signal.SIGINT, before)
    try:
        return commands.main_sweep() if program == "densevit-sweep" else commands.main()
    except KeyboardInterrupt:  # between the import and the command
        stop(signal.SIGINT, None)
        raise


if __name__ == "__main__":
    sys.exit(main())
