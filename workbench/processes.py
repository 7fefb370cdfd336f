"""The processes of a run: joined, checked to be what was asked for, ended with one reason."""

import contextlib
import os
import time
from datetime import timedelta
from importlib.util import find_spec
from typing import TYPE_CHECKING, TypeVar

from workbench.errors import UserError
from workbench.logs import is_main_process, process_index

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.distributed import Store  # type: ignore[attr-defined]

T = TypeVar("T")

PROCESSES = "RLHF_PROCESSES"  # `rlhf --accelerate` says in it how many it was asked for, in all
SIZES = (PROCESSES, "WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
TIMEOUT, DEFAULT_TIMEOUT = "RLHF_TIMEOUT", 1800.0  # seconds; one may evaluate while others wait
SILENT = 3  # exit code of a process that left it to another to tell why the run ends
GRACE = 1.0  # seconds in which the main process may tell of a failure before the others do


def asked() -> int:
    """Return how many processes were asked for, on all machines; 1 where nothing launched any."""
    return max(int(os.environ.get(name) or 1) for name in SIZES)


def asked_for_fsdp() -> bool:
    """Return whether the launcher was asked to shard by FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def asked_for_deepspeed() -> bool:
    """Return whether the launcher was asked to shard by DeepSpeed."""
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true"


def timeout() -> float:
    """Return the seconds one process waits for the others: `$RLHF_TIMEOUT`, or half an hour.

    Raises:
        UserError: when it is no number above 0.
    """
    text = os.environ.get(TIMEOUT) or str(DEFAULT_TIMEOUT)
    with contextlib.suppress(ValueError):
        if float(text) > 0:
            return float(text)
    raise UserError(f"{TIMEOUT}={text}: must be a number of seconds above 0")


def start(stage: str) -> None:
    """Join the processes that were started together, before the stage reads or writes anything.

    Accelerate by itself goes on where it could not do what it was asked for: from some files it
    starts fewer processes, or as many that know nothing of each other, and without a GPU it leaves
    FSDP out.

    Raises:
        UserError: when the processes or the sharding are not what was asked for.
    """
    import torch
    from accelerate import PartialState

    patience, on_gpu = timeout(), torch.cuda.is_available()
    if asked_for_deepspeed():
        _check_deepspeed(stage)
    sharding = "FSDP" if asked_for_fsdp() else "DeepSpeed" if asked_for_deepspeed() else None
    if sharding is not None and stage != "ppo" and not on_gpu:
        raise UserError(
            f"{stage}: {sharding} was asked for, and without a GPU Accelerate leaves it out "
            "without a word; take configs/accelerate/cpu.yaml, whose processes hold the whole "
            "model each"
        )
    here = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    if on_gpu and here > torch.cuda.device_count():
        raise UserError(
            f"{here} processes on this machine, which has {torch.cuda.device_count()} GPUs; lower "
            "--num-processes"
        )
    if asked() > 1:
        # gloo joins processes on CPUs, NCCL on GPUs.
        state = PartialState(cpu=not on_gpu, timeout=timedelta(seconds=patience))
        if state.num_processes != asked():
            raise UserError(
                f"{asked()} processes were asked for, and each here knows of "
                f"{state.num_processes}: Accelerate joins those it starts for distributed_type "
                "MULTI_GPU, FSDP or DEEPSPEED, and for MULTI_CPU only through mpirun; on CPUs take "
                "configs/accelerate/cpu.yaml"
            )


def check(accelerator: "Accelerator") -> None:
    """Check that an accelerator has the processes and the sharding that were asked for.

    Raises:
        UserError: when it has not.
    """
    from accelerate import DistributedType

    kind, number = accelerator.distributed_type, accelerator.num_processes
    if number != asked():
        raise UserError(f"{asked()} processes were asked for, and Accelerate works with {number}")
    for wanted, sharding in (
        (asked_for_fsdp(), DistributedType.FSDP),
        (asked_for_deepspeed(), DistributedType.DEEPSPEED),
    ):
        if wanted and kind is not sharding:
            raise UserError(
                f"sharding by {sharding.value} was asked for, and Accelerate works as {kind.value}"
            )


def agree(value: T, what: str) -> T:
    """Check that all processes see the same, and return it; every process must call it.

    Raises:
        UserError: on every process, when one sees something else.
    """
    if asked() == 1:
        return value
    from accelerate.utils import gather_object

    seen = gather_object([value])
    if any(other != seen[0] for other in seen):
        raise UserError(
            f"{what}: the processes see different things ({', '.join(map(str, seen))}); the run's "
            "folder and data must be on a disk that all machines share"
        )
    return value


def wait_for_everyone() -> None:
    """Return when every process has come here."""
    if asked() > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()


def of_main(value: T) -> T:
    """Return what the main process gives; every process must call it."""
    if asked() == 1:
        return value
    from accelerate.utils import broadcast_object_list

    given: list[T] = broadcast_object_list([value])
    return given[0]


def lost(error: BaseException) -> bool:
    """Return whether an error says that another process ended, or did not come in time."""
    if asked() == 1:
        return False
    from torch.distributed import DistError

    return isinstance(error, DistError) or (
        isinstance(error, RuntimeError) and "gloo" in str(error)
    )


def loss_in_words(error: BaseException) -> str:
    """Return what an error that `lost` knows means, and what to look at."""
    if "timed out" not in str(error).lower() and "timeout" not in str(error).lower():
        time.sleep(2 * GRACE)  # it may have told why it ended, and whoever started it ends all
        return (
            "another process has ended without a word; it was killed, perhaps for lack of memory: "
            "look at the system's log"
        )
    return (
        f"waited {timeout():g} s for {_missing()}, which did not come: look whether it hangs (its "
        "reward function, a disk, a server, the network between machines) or has far more to do; "
        f"{TIMEOUT}=<seconds> in the environment lets the others wait longer"
    )


def tells() -> bool:
    """Return whether this process is the one to tell why the run ends: the first to ask, once.

    A failure that all see is the main process's to tell.
    """
    if asked() == 1:
        return True
    if not is_main_process():
        time.sleep(GRACE)
    store = _store()
    if store is None:
        return is_main_process()
    try:
        return bool(store.add("rlhf/told", 1) == 1)
    except RuntimeError:  # gone with the process that kept it, which has told
        return is_main_process()


def _missing() -> str:
    """Return the processes that are not waiting too, in words."""
    store, others = _store(), "another process"
    if store is None:
        return others
    with contextlib.suppress(RuntimeError):
        store.set(f"rlhf/waited/{process_index()}", "")
        time.sleep(GRACE)
        absent = [n for n in range(asked()) if not store.check([f"rlhf/waited/{n}"])]
        if absent:
            others = f"process {', '.join(map(str, absent))}"
    return others


def _store() -> "Store | None":
    """Return a connection of its own to what joins the processes, or None where there is none."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if not address or not port:
        return None
    try:
        found: Store = TCPStore(address, int(port), is_master=False, timeout=timedelta(seconds=5))
    except (RuntimeError, ValueError):
        return None
    return found


def _check_deepspeed(stage: str) -> None:
    if stage == "ppo":
        raise UserError(
            "ppo: DeepSpeed was asked for, and its engine does not take a module with two losses "
            "and an actor beside it; take configs/accelerate/fsdp2.yaml, which shards PPO"
        )
    if find_spec("deepspeed") is None:
        raise UserError("DeepSpeed was asked for, and is not installed; run: pip install deepspeed")
