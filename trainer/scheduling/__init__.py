"""Where jobs run, and whose turn it is: a small port, and this machine behind it."""

from trainer.scheduling.gpus import Gpu, gpu_count, machine_gpus
from trainer.scheduling.local import LocalMachine
from trainer.scheduling.port import Scheduler

__all__ = ["Gpu", "LocalMachine", "Scheduler", "gpu_count", "machine_gpus"]
