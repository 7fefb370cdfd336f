"""The `rlhf` command."""

import errno
import re
import signal
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from workbench import __version__, commands, inventory, launch, plan_command, runs_command, samples
from workbench import doctor as doctor_command
from workbench.data import command as data_command
from workbench.errors import StageError, UserError
from workbench.logs import console, is_main_process, process_index, quiet_libraries, unbarred
from workbench.passwords import masked, masked_tree
from workbench.process import prepare
from workbench.processes import SILENT, asked, loss_in_words, lost, tells

app = typer.Typer(
    name="rlhf",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="RLHF as InstructGPT did it: `sft`, `reward`, `ppo`, then `compare`. "
    "Start with `rlhf demo`.",
)

Config = Annotated[
    str | None, typer.Option("--config", "-c", help="YAML file, or a packaged one (configs/…)")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="section.key=value …", show_default=False)
]
PrintConfig = Annotated[
    bool, typer.Option("--print-config", help="print the resulting config and stop")
]
AccelerateFile = Annotated[
    str | None, typer.Option("--accelerate", help="Accelerate config: launch through it")
]
NumProcesses = Annotated[
    int | None, typer.Option("--num-processes", help="processes, with --accelerate")
]
ReportTo = Annotated[
    str | None, typer.Option("--report-to", help="trackio, tensorboard, wandb or none")
]

INTERRUPTED = 130  # the shell's code for a command stopped by Ctrl-C
UNWRITABLE = {
    errno.ENOSPC: "no space left on the disk; free some and run the same command again",
    errno.EDQUOT: "disk quota exceeded; free some space and run the same command again",
    errno.EFBIG: "the file would be larger than the disk or `ulimit -f` allows; raise the limit",
    errno.EROFS: "the folder is on a read-only file system; choose another, run.root=… or --out",
    errno.EACCES: "permission denied; choose a folder you may write to with run.root=… or --out",
    errno.EPERM: "not permitted; choose a folder you may write to with run.root=… or --out",
    errno.ENOTDIR: "a file is where a folder should be; choose another, run.root=… or --out",
    errno.EEXIST: "a file is where a folder should be; choose another, run.root=… or --out",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter run.name",
}


def _version(show: bool) -> None:
    if show:
        typer.echo(f"rlhf-workbench {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    _version_asked: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    quiet_libraries()


def _stage(
    stage: str,
    config: str | None,
    overrides: list[str] | None,
    print_config: bool,
    accelerate: str | None,
    num_processes: int | None,
    report_to: str | None,
) -> None:
    texts = [*(overrides or []), *([f"run.report_to={report_to}"] if report_to else [])]
    if num_processes is not None and accelerate is None:
        raise UserError(
            "--num-processes: needs --accelerate FILE, "
            "e.g. --accelerate configs/accelerate/cpu.yaml"
        )
    if print_config:
        launch.print_config(launch.stage_config(stage, config, texts))
    elif accelerate is not None:
        launch.accelerate_launch(stage, config, texts, accelerate, num_processes)
    else:
        launch.run_stage(stage, launch.stage_config(stage, config, texts))


@app.command()
def sft(
    config: Config = None,
    overrides: Overrides = None,
    print_config: PrintConfig = False,
    accelerate: AccelerateFile = None,
    num_processes: NumProcesses = None,
    report_to: ReportTo = None,
) -> None:
    """Stage 1: supervised fine-tuning on demonstrations.

    Example: `rlhf sft --config configs/sft/demo.yaml sft.learning_rate=1e-4`
    """
    _stage("sft", config, overrides, print_config, accelerate, num_processes, report_to)


@app.command()
def reward(
    config: Config = None,
    overrides: Overrides = None,
    print_config: PrintConfig = False,
    accelerate: AccelerateFile = None,
    num_processes: NumProcesses = None,
    report_to: ReportTo = None,
    data: Annotated[
        str | None,
        typer.Option(help="short for data.train=…: a file, or the votes in ratings:URL[#campaign]"),
    ] = None,
) -> None:
    """Stage 2: a reward model on preference pairs or rankings.

    Example: `rlhf reward --data ratings:sqlite:///runs/ui/ratings.db run.name=people`
    """
    overrides = [*(overrides or []), *([] if data is None else [f"data.train={data}"])]
    _stage("reward", config, overrides, print_config, accelerate, num_processes, report_to)


@app.command()
def ppo(
    config: Config = None,
    overrides: Overrides = None,
    print_config: PrintConfig = False,
    accelerate: AccelerateFile = None,
    num_processes: NumProcesses = None,
    report_to: ReportTo = None,
) -> None:
    """Stage 3: PPO against the reward model, held near the SFT policy by a KL penalty.

    Example: `rlhf ppo --config configs/ppo/demo.yaml ppo.kl_coef=0.1`
    """
    _stage("ppo", config, overrides, print_config, accelerate, num_processes, report_to)


app.command(rich_help_panel="The loop")(commands.demo)
app.command()(commands.generate)
app.command()(commands.compare)
app.command()(commands.report)
app.command()(samples.samples)
app.add_typer(launch.room_commands("prompts"), name="prompts")
app.add_typer(launch.room_commands("ui"), name="ui")
app.add_typer(launch.room_commands("ui", "ratings_command"), name="ratings")
app.add_typer(data_command.app, name="data")
app.command()(inventory.models)
app.add_typer(runs_command.app, name="runs")
app.command()(plan_command.plan)
app.command()(doctor_command.doctor)


def guarded(call: Callable[[], object]) -> int:
    """Run a command and turn everything a user can cause into one line and an exit code.

    Returns:
        0 when all went well, 2 for a mistake the user can mend, 130 after Ctrl-C, or the code
        a command exits with.
    """
    try:
        result = call()
        if result == INTERRUPTED:  # typer has turned Ctrl-C into its exit code
            raise KeyboardInterrupt
    except UserError as error:
        return _fail(str(error))
    except StageError as error:
        return error.code
    except typer.TyperException as error:
        message = " ".join(error.format_message().split())
        # `rlhf` alone has printed its help already and has nothing to add.
        return _fail(f"{message.rstrip('.')}; see --help") if message else 2
    except (KeyboardInterrupt, typer.Abort):
        if asked() > 1:  # once by the terminal, and once more by what started the processes
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        console.print(
            "\nstopped; what was finished is kept, the same command continues", markup=False
        )
        return INTERRUPTED
    except Exception as error:
        reason = loss_in_words(error) if lost(error) else _unwritable(error)
        if reason is not None:
            return _fail(reason)
        if not tells():
            return SILENT
        raise
    return result if isinstance(result, int) else 0


def _unwritable(error: Exception) -> str | None:
    """Return why a file could not be written, in words, or None for any other error."""
    if isinstance(error, OSError):
        code, where = error.errno, error.filename or "write"
    else:
        # safetensors (Rust) and torch.save (C++) report a full disk in exceptions of their own.
        found = re.search(r"\(os error (\d+)\)", str(error))
        code, where = int(found[1]) if found else None, "write"
        if "inline_container.cc" in str(error) or "iostream error" in str(error):
            code = errno.ENOSPC
    return f"{where}: {UNWRITABLE[code]}" if code in UNWRITABLE else None


def _fail(message: str) -> int:
    if not tells():
        return SILENT
    where = "" if is_main_process() else f"process {process_index()}: "
    console.quiet = False
    with unbarred():
        console.print(f"rlhf: error: {where}{masked(message)}", markup=False, style="red")
    return 2


def main() -> None:
    """Entry point of the `rlhf` command."""
    prepare()
    arguments = sys.argv[1:]
    sys.argv[1:] = masked_tree(arguments)  # trackers record the command line
    sys.exit(guarded(lambda: app(arguments, standalone_mode=False)))


def stage_main(stage: str) -> None:
    """Entry point of `python -m STAGE`, which is what `accelerate launch -m STAGE` runs."""
    sys.argv.insert(1, stage)
    main()
