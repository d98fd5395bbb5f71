"""From an HTCondor-CE to an HPC's low-priority Slurm QOS and back."""

__version__ = "0.1.0"
