"""python -m inaccfs."""

from __future__ import annotations

import sys

from inaccfs.cli import main

sys.exit(main())
