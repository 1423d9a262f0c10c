"""The command completion, and the scripts by which bash, zsh and fish ask dedupfs itself.

A script calls dedupfs with _DEDUPFS_COMPLETE set to its own name and gets records of three fields
that end with NUL: a kind, a value, what it is about. Kinds: ``plain`` (the value is a whole word),
``open`` (more of the word follows), ``dir`` and ``file`` (the shell looks for them itself). Who
answers: ``completing``. Source: bash(1), "Programmable Completion"; zshcompwid(1); complete(1) of
fish.
"""

import click

from dedupfs.cli.failures import COMPLETION_VARIABLE

INSTALLED_AS = {
    "bash": "share/bash-completion/completions/dedupfs",
    "zsh": "share/zsh/site-functions/_dedupfs",
    "fish": "share/fish/vendor_completions.d/dedupfs.fish",
}
"""Below the prefix: where each shell looks for what packages bring."""

# Readline replaces what follows the last of COMP_WORDBREAKS in the word; so dedupfs, which gets the
# line as it was typed, answers with what comes after that, quoted: as "filenames" readline would
# quote them by itself, but neither $ nor `.
_BASH = r"""
_dedupfs() {
    local program=$1 kind value about
    [[ $program != '~/'* ]] || program=$HOME/${program:2}
    COMPREPLY=()
    while IFS= read -r -d '' kind && IFS= read -r -d '' value && IFS= read -r -d '' about; do
        case $kind in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            open) compopt -o nospace; COMPREPLY+=("$value") ;;
            *) COMPREPLY+=("$value") ;;
        esac
    done < <(@VARIABLE@=bash "$program" "$COMP_WORDBREAKS" "${COMP_LINE:0:COMP_POINT}" 2>/dev/null)
}
complete -o nosort -F _dedupfs dedupfs
"""

_ZSH = r"""#compdef dedupfs
_dedupfs() {
    local program=${(Q)words[1]} kind value about
    local -a plain more described
    program=${program/#\~\//$HOME/}
    for kind value about in "${(@0)$(@VARIABLE@=zsh $program \
            "${(@Q)words[2,CURRENT-1]}" "${(Q)PREFIX}" 2>/dev/null)}"; do
        case $kind in
            (dir|file)
                compset -P '--*='
                if [[ $kind == dir ]]; then _files -/; else _files; fi ;;
            (open) more+=("$value") ;;
            (plain)
                if [[ -n $about ]]; then
                    described+=("${${value//\\/\\\\}//:/\\:}:$about")
                else
                    plain+=("$value")
                fi ;;
        esac
    done
    (( $#described )) && _describe -V '' described
    (( $#plain )) && compadd -V plain -a plain
    (( $#more )) && compadd -V more -S '' -a more
}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    _dedupfs "$@"
else
    compdef _dedupfs dedupfs
fi
"""

_FISH = r"""
function __dedupfs_complete
    set -l words (commandline -opc)
    set -l program (string replace -r '^~/' "$HOME/" -- $words[1])
    set -l found (env @VARIABLE@=fish $program $words[2..-1] (commandline -ct) 2>/dev/null | \
        string split0)
    set -l at 1
    while test $at -lt (count $found)
        set -l value $found[(math $at + 1)]
        set -l about $found[(math $at + 2)]
        switch $found[$at]
            case dir
                __fish_complete_directories (commandline -ct) '' | string join0
            case file
                __fish_complete_path (commandline -ct) '' | string join0
            case '*'
                printf '%s\t%s\0' $value $about
        end
        set at (math $at + 3)
    end
end
complete --command dedupfs --no-files --keep-order \
    --arguments '(__dedupfs_complete | string split0)'
"""

_SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


def script(shell: str) -> str:
    """Return what makes ``shell`` complete dedupfs, to be sourced or to be found in its place."""
    return _SCRIPTS[shell].lstrip("\n").replace("@VARIABLE@", COMPLETION_VARIABLE)


@click.command()
@click.argument("shell", type=click.Choice(list(_SCRIPTS)))
def completion(shell: str) -> None:
    """Print the script that completes dedupfs in SHELL.

    It completes commands, options, and what the store has: snapshots, paths in them, views, tags.
    pip installs the scripts, too, in share/ below its prefix.

    \b
    Examples:
      dedupfs completion bash > /etc/bash_completion.d/dedupfs
      eval "$(dedupfs completion zsh)"
    """
    click.echo(script(shell), nl=False)


COMMANDS: list[click.Command] = [completion]
