"""The command line: its group of commands, exit codes and log. Answers go to stdout, the log and progress to stderr."""

from __future__ import annotations

import atexit
import contextlib
import gc
import logging
import os
import sys
import tempfile

import click

from unseen_ray.cli.commands.copies import copies
from unseen_ray.cli.commands.evaluate import evaluate
from unseen_ray.cli.commands.export import export
from unseen_ray.cli.commands.list import list_names
from unseen_ray.cli.commands.plan import plan
from unseen_ray.cli.commands.prepare import prepare
from unseen_ray.cli.commands.prune import prune
from unseen_ray.cli.commands.report import report
from unseen_ray.cli.commands.score import score
from unseen_ray.cli.commands.select import select
from unseen_ray.cli.commands.submit import submit
from unseen_ray.cli.commands.sweep import sweep
from unseen_ray.cli.commands.watch import watch
from unseen_ray.cli.output import FAILED, INTERRUPTED, LogFormatter, say
from unseen_ray.cli.signals import interruption
from unseen_ray.cli.usage import usage_text
from unseen_ray.errors import UnseenError
from unseen_ray.storage.retry import no_more_files
from unseen_ray.training.host import claim_process

__all__ = ["entry", "main"]

# What the dynamic linker, torch and Python say when the system gives no memory, in errors of other types than MemoryError.
_NO_MEMORY = ("failed to map segment", "can't allocate memory", "can't start new thread", "Cannot allocate memory")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="unseen-ray", prog_name="unseen-ray")
@click.option("-v", "--verbose", is_flag=True, help="Log details, too.")
def cli(verbose: bool) -> None:
    """Prune training sets with scores from models that never saw the samples."""
    _start_logging(verbose)


# The commands import their work inside themselves: --help must answer within half a second.
for _command in (
    plan,
    prune,
    select,
    score,
    evaluate,
    report,
    export,
    list_names,
    copies,
    prepare,
    submit,
    sweep,
    watch,
):
    cli.add_command(_command)


def main(args: list[str] | None = None) -> None:
    """Run a command and end with its exit code: 0 done, 2 bad configuration, 3 bad data, 4 failed, 130 interrupted."""
    # `package.module:function` is found where the command is run; last, so that a file there never hides a library.
    sys.path.append(os.getcwd())
    interruption.listen()
    try:
        # Not standalone: click would end the process itself, and know nothing of our exit codes.
        cli.main(args=args, prog_name="unseen-ray", standalone_mode=False)
    except click.ClickException as error:
        say(f"error: {usage_text(error)}", err=True)
        sys.exit(error.exit_code)
    except UnseenError as error:
        say(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        say("interrupted; run the same line again to resume", err=True)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # The reader, such as `head`, has what it wanted. Python flushes stdout at exit and would print a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        _explain(error)
        sys.exit(FAILED)


def _explain(error: Exception) -> None:
    """Say that memory or open files are short where that is the cause, and else log where the error came from."""
    log = logging.getLogger(__name__)
    if isinstance(error, MemoryError) or any(text in str(error) for text in _NO_MEMORY):
        log.debug("out of memory", exc_info=error)
        say(
            f"error: this process may use no more memory: {str(error) or type(error).__name__}. Raise its limit (`ulimit -v`, or the "
            "container's), or take less (`unseen-ray plan` shows what a run needs); the same line resumes a run.",
            err=True,
        )
    elif said := no_more_files(error):
        log.debug("out of open files", exc_info=error)
        say(f"error: {said}; the same line resumes a run.", err=True)
    else:
        log.error("this is a bug in unseen_ray, or in a function of your own", exc_info=error)


def entry() -> None:
    """The console script: `main`, then an exit without the interpreter's shutdown."""
    claim_process()
    code: object = 0
    try:
        main()
    except SystemExit as ended:
        code = ended.code
    # Everything is closed by now. pyarrow's threads have been seen to abort the process during Python's own shutdown.
    _remove_temporary_folders()
    if code == INTERRUPTED:  # perhaps while Ray started, which ends what it has started by then at exit alone
        # pyarrow's own would wait for calls that an object store does not answer.
        atexit.unregister(getattr(sys.modules.get("pyarrow.fs"), "ensure_s3_finalized", main))
        atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0)


def _remove_temporary_folders() -> None:
    """Remove what wandb leaves to Python's shutdown: it makes two folders when it is imported, and more as it logs."""
    if "wandb" in sys.modules:
        for each in gc.get_objects():
            # A user's own may be meant to stay (3.12), and no leftover may change the exit code.
            if type(each) is tempfile.TemporaryDirectory and getattr(each, "_delete", True):
                with contextlib.suppress(OSError):
                    each.cleanup()


def _start_logging(verbose: bool) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LogFormatter("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"))
    root = logging.getLogger("unseen_ray")
    root.handlers, root.propagate = [handler], False
    root.setLevel(logging.DEBUG if verbose else logging.INFO)
