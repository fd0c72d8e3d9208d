"""Command lines that cannot be read, in the words of all other errors."""

from __future__ import annotations

import click

from unseen_ray.plugins import did_you_mean

__all__ = ["usage_text"]


def usage_text(error: click.ClickException) -> str:
    """What is wrong with a command line, and which help tells more."""
    context: click.Context | None = getattr(error, "ctx", None)
    if context is None:
        return _problem(error, context)
    what = "commands" if isinstance(context.command, click.Group) else "options"
    return f"{_problem(error, context)} `{context.command_path} --help` lists the {what}."


def _problem(error: click.ClickException, context: click.Context | None) -> str:
    if isinstance(error, click.NoSuchOption) and context is not None:
        options = [name for param in context.command.params for name in param.opts if name.startswith("--")]
        return f"{context.command_path} has no option {error.option_name}.{did_you_mean(error.option_name, options)}"
    if isinstance(error, click.BadOptionUsage):
        needs = "needs a value" if "requires" in error.message else "takes no value"
        return f"{error.option_name} {needs}."
    if isinstance(error, click.BadParameter) and error.param is not None:
        param = error.param
        name = param.opts[0] if isinstance(param, click.Option) else param.human_readable_name
        if not isinstance(error, click.MissingParameter):
            return f"{name}: {error.message.rstrip('.')}."
        about = getattr(param, "help", None) or ", ".join(getattr(param.type, "choices", ()))
        return f"{name} is missing{f' ({about})' if about else ''}."
    text = error.format_message().replace("Got unexpected extra", "unexpected").replace("No such", "there is no", 1)
    return text if text.endswith((".", "?")) else f"{text}."
