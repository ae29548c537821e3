"""`python -m densevit` is the command `densevit`."""

import sys

from densevit.cli import main

if __name__ == "__main__":
    sys.exit(main())
