"""`python -m r1jax`, the same as the console script."""

import sys

from r1jax.cli import main

sys.exit(main())
