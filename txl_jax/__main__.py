"""`python -m txl_jax COMMAND`."""

import sys

from txl_jax.cli import main

if __name__ == '__main__':
  sys.exit(main())
