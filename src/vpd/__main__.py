"""``python -m vpd``."""

import sys

from vpd.cli import main

sys.exit(main())
