"""`python -m ixtune` is the `ixtune` command."""

import sys

from ixtune.cli import main

if __name__ == "__main__":
    sys.exit(main())
