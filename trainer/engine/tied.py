"""`python tied.py PARENT SIGNAL COMMAND…`: become COMMAND, which gets SIGNAL when PARENT ends, however it does.

Run as a file, without the package: the standard library alone.
"""

import ctypes
import os
import sys

_SET_PDEATHSIG = 1  # Linux: include/uapi/linux/prctl.h

if __name__ == "__main__":
    ctypes.CDLL(None).prctl(_SET_PDEATHSIG, int(sys.argv[2]), 0, 0, 0)
    if os.getppid() != int(sys.argv[1]):
        sys.exit(1)  # it ended before it could be said
    os.execvp(sys.argv[3], sys.argv[3:])
