"""`python -m flowact`, the same as the console script; distributed strategies start further processes this way."""

from __future__ import annotations

import sys

from flowact.cli import main

if __name__ == "__main__":
    sys.exit(main())
