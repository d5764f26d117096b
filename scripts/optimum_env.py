"""Make the environment for `--via optimum` and `--oracle optimum`, if it does not exist yet."""

from __future__ import annotations

import sys

from edgekit.errors import EdgekitError
from edgekit.optimum.environment import open_environment


def main() -> int:
    """Make it, and print where it is."""
    try:
        environment = open_environment(print)
    except EdgekitError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(environment.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
