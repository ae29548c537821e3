"""Run the command `densevit` as `python -m densevit`."""

import sys

from densevit.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
