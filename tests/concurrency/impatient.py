"""`bdnfs` as it is, but with deadlines of a second where they are minutes: python -m tests.concurrency.impatient …"""

from bdnfs.cache.node import NodeCache
from bdnfs.cli import main
from bdnfs.delivery.delivery import open_delivery
from bdnfs.session import directories

DEADLINE_S = 1.0

if __name__ == "__main__":
    NodeCache.__init__.__kwdefaults__["lock_timeout_s"] = DEADLINE_S
    open_delivery.__wrapped__.__kwdefaults__["busy_timeout_s"] = DEADLINE_S
    directories._REGISTRY_TIMEOUT_S = DEADLINE_S
    main()
