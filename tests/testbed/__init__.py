"""The testbed: CE, Tier-1 pool and Slurm cluster, all real, in namespaces of one machine."""

from .bed import Testbed
from .errors import TestbedError, UsageError

__all__ = ["Testbed", "TestbedError", "UsageError"]
