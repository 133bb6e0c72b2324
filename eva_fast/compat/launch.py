"""Which process of how many this is, as launchers say it.

The official script reads RANK, WORLD_SIZE and LOCAL_RANK, which torchrun, torch.distributed.launch and
DeepSpeed's launcher set; so does eva_fast. mpirun and srun say it in words of their own, which are taken
over here; the official script would run alone in each of their processes.
"""

from collections.abc import MutableMapping

from eva_fast.errors import UsageError

OFFICIAL = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
OTHERS = {
    "mpirun": (
        "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    "srun": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"),
}  # fmt: skip


def settle(environment: MutableMapping[str, str], local_rank: int = -1) -> None:
    """Writes into `environment` what eva_fast reads there. local_rank: of `--local_rank`, -1 for none.
    UsageError where processes of mpirun or srun do not know where to meet."""
    if "WORLD_SIZE" in environment:
        if local_rank >= 0:
            environment.setdefault("LOCAL_RANK", str(local_rank))
        return
    for launcher, names in OTHERS.items():
        if environment.get(names[1], "1") == "1":
            continue
        if "MASTER_ADDR" not in environment or "MASTER_PORT" not in environment:
            raise UsageError(
                f"{launcher} started {environment[names[1]]} processes: set MASTER_ADDR to the first "
                "machine and MASTER_PORT to a free port there, or start them by torchrun"
            )
        for ours, theirs in zip(OFFICIAL, names):
            if theirs in environment:  # 4(x2),3 of SLURM: the first machine's tasks
                environment[ours] = environment[theirs].partition("(")[0].partition(",")[0]
        return
