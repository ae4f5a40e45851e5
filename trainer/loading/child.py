"""The child that runs a config.py: `python -P -m trainer.loading.child PATH RESULT DUMP SECONDS`.

RESULT and DUMP are descriptors of files: the answer as JSON, and where the config was when its time
was up. What the config prints goes to standard error. It ends without waiting for threads, atexit
functions or destructors of the config's.
"""

import faulthandler
import json
import os
import sys
from typing import Any

from trainer.errors import ConfigError
from trainer.loading.execute import execute


def main(argv: list[str]) -> None:
    """Run the config, write the answer, end."""
    path, result, dump, seconds = argv[1], int(argv[2]), int(argv[3]), float(argv[4])
    for fd in (result, dump):
        os.set_inheritable(fd, False)
    with open(path, "rb") as file:
        content = file.read()
    # Needs no turn of the interpreter's: also code that never gives one up is told of, and ended.
    faulthandler.dump_traceback_later(seconds, exit=True, file=dump)
    answer: dict[str, Any]
    try:
        project, said = execute(path, content)
        answer = {"project": project.model_dump(mode="json"), "warnings": said}
    except ConfigError as error:
        answer = {"error": str(error)}
    faulthandler.cancel_dump_traceback_later()
    os.pwrite(result, json.dumps(answer).encode(), 0)
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv)
