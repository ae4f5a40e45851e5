"""`python -P -m trainer.loading FILE` prints the weights of a config.py as JSON.

For `bdnfs`, which takes a config.py as SPEC and imports nothing of the trainer. Exit codes and
errors are the trainer's: one line on standard error.
"""

import json
import sys

from trainer.errors import TrainerError
from trainer.loading.config import load_config
from trainer.loading.spec import spec_of


def main(argv: list[str]) -> int:
    """Print the spec; return the exit code."""
    try:
        loaded = load_config(argv[1])
    except TrainerError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(json.dumps(spec_of(loaded.project) | {"warnings": loaded.warnings}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
