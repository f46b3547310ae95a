"""The verb `completion`: scripts that let a shell complete verbs, options and remote paths.

Owns: the bash script (click's own puts a space after a directory and splits names at spaces). Refuses to know: what is
completed; click asks the parameters of a verb.
"""

from __future__ import annotations

from typing import ClassVar, Final

import click
from click.shell_completion import BashComplete, ShellComplete, get_completion_class

from dfs.cli.verb import verb

COMPLETE_VARIABLE: Final = "_DFS_COMPLETE"

_BASH: Final = """\
%(complete_func)s() {
    local IFS=$'\\n' response completion type value
    response=$(env COMP_WORDS="${COMP_WORDS[*]}" COMP_CWORD=$COMP_CWORD %(complete_var)s=bash_complete $1 2>/dev/null)
    COMPREPLY=()
    for completion in $response; do
        type=${completion%%%%,*}
        value=${completion#*,}
        case $type in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain)
                [[ $value == */ ]] && compopt -o nospace
                COMPREPLY+=("$(printf %%q "$value")")
                ;;
        esac
    done
    return 0
}

complete -o nosort -F %(complete_func)s %(prog_name)s
"""


class _Bash(BashComplete):
    source_template: ClassVar[str] = _BASH

    @staticmethod
    def _check_version() -> None:
        """Any bash since 4.4 will do; the check would cost a process per completion."""


@verb("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion_verb(ctx: click.Context, shell: str) -> None:
    """Print the completion script of SHELL; put `eval "$(dfs completion bash)"` into ~/.bashrc."""
    kind: type[ShellComplete] | None = _Bash if shell == "bash" else get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"there is no completion for {shell!r}")
    click.echo(kind(ctx.find_root().command, {}, "dfs", COMPLETE_VARIABLE).source())
