"""The command man: a page for each command, from the same source as --help.

Writes roff, man(7), from what click knows of the commands; knows none of them. What is the same on
all pages, the exit codes, is the table of docs/cli.md in short.
"""

import inspect
import os
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from dedupfs import __version__
from dedupfs.cli import output
from dedupfs.errors import SourceError

_BLOCK = "\b"
"""click's mark of a paragraph that is not to be filled."""
_CODES = (
    ("0", "done"),
    ("1", "no such thing; or differences, or something to mend, where a command says so"),
    ("2", "wrong arguments, a name that is taken, a path that is no store"),
    ("3", "the store or its disk failed, or is damaged"),
    ("4", "the store was made by a newer dedupfs"),
    ("5", "the disk or the quota is full"),
    ("6", "somebody else holds the store or the view"),
    ("7", "something outside the store could not be read or written; the rest was done"),
    ("8", "the mount could not be made or ended"),
    ("70", "a bug of dedupfs"),
    ("130", "interrupted"),
    ("141", "the reader of standard output has gone"),
)


@click.command()
@click.option(
    "--output",
    "directory",
    metavar="DIR",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Write the pages into man1 and man8 there.",
)
@click.pass_context
def man(ctx: click.Context, directory: Path) -> None:
    """Write the manual pages: dedupfs(1), dedupfs-COMMAND(1) for each command, mount.dedupfs(8).

    pip installs them, too, in share/man below its prefix, where man(1) finds them by itself when
    bin of the same prefix is on PATH.

    \b
    Example:
      dedupfs man --output ~/.local/share/man
    """
    root = ctx.find_root().command
    assert isinstance(root, click.Group)
    try:
        count = write_pages(root, directory)
    except OSError as exc:
        raise SourceError(f"cannot write to {directory}: {exc.strerror}") from exc
    output.print_line(f"{output.count_text(count, 'page')} in {directory}")


def write_pages(root: click.Group, directory: Path) -> int:
    """Write every page into the subdirectory of its section, and return how many there are.

    Raises:
        OSError: it cannot be written.
    """
    count = 0
    for name, text in pages(root):
        path = directory / f"man{name[-1]}" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        count += 1
    return count


def pages(root: click.Group) -> Iterator[tuple[str, str]]:
    """Yield the file name and the text of every page."""
    context = click.Context(root, info_name="dedupfs", **root.context_settings)
    names = root.list_commands(context)
    commands = {name: root.get_command(context, name) for name in names}
    yield "dedupfs.1", _root_page(context, root, {k: v for k, v in commands.items() if v})
    for name, command in commands.items():
        if command is not None:
            inner = click.Context(command, info_name=name, parent=context)
            yield f"dedupfs-{name}.1", _page(inner, command)
    yield "mount.dedupfs.8", _helper_page()


def _root_page(
    context: click.Context, root: click.Group, commands: dict[str, click.Command]
) -> str:
    listed = [
        part
        for name, command in commands.items()
        for part in (".TP", f"\\fBdedupfs\\-{_inline(name)}\\fR(1)", _text(_summary(command)))
    ]
    return _joined(
        _head("dedupfs", _summary(root)),
        [".SH SYNOPSIS", f"\\fBdedupfs\\fR {_inline('[OPTIONS] COMMAND [ARGUMENTS]...')}"],
        _description(root),
        _options(context, root),
        [".SH COMMANDS", *listed],
        _exit_status(),
    )


def _page(context: click.Context, command: click.Command) -> str:
    parts = [
        _head(f"dedupfs-{command.name}", _summary(command)),
        [".SH SYNOPSIS", *_usage_without_name(context, command), _usage(context, command)],
        _description(command),
        _options(context, command),
    ]
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            if inner is not None and not inner.hidden:
                below = click.Context(inner, info_name=name, parent=context)
                parts.append([f'.SH "{_inline(name.upper())}"', _usage(below, inner)])
                parts.append(_description(inner, heading=False))
                parts.append(_options(below, inner, heading=False))
    return _joined(*parts, _exit_status(), _see_also(command))


def _usage_without_name(context: click.Context, command: click.Command) -> list[str]:
    """Return how a group is used without one of its commands: as its hidden one, if any."""
    if not isinstance(command, click.Group):
        return []
    hidden = [inner for inner in command.commands.values() if inner.hidden]
    below = [
        click.Context(inner, info_name=command.name, parent=context.parent) for inner in hidden
    ]
    return [
        line
        for inner, made in zip(hidden, below, strict=True)
        for line in (_usage(made, inner), ".PP")
    ]


def _see_also(command: click.Command) -> list[str]:
    """Name the commands that --help lists beside this one."""
    from dedupfs.cli.app import SECTIONS

    near = [name for section in SECTIONS.values() if command.name in section for name in section]
    names = ["dedupfs", *(f"dedupfs-{name}" for name in near if name != command.name)]
    return [".SH SEE ALSO", ", ".join(_reference(name) for name in names)]


_HELPER_OPTIONS = (
    ("snapshot=S", "Show this snapshot's tree instead of all of them."),
    ("view=V", "Write into this view (default: 'default')."),
    ("ephemeral", "Write into a view that goes at unmount."),
    ("limit=SIZE", "Let the view hold so much of its own; it stays when it is unmounted."),
    ("ro, rw, exec, noexec", "As in mount(8)."),
    ("allow_other", "Let other users look in."),
    ("no_writeback", "Hand each write over before it returns."),
    ("no_auto_gc", "Leave what others have deleted to 'dedupfs gc'."),
    ("metrics=[ADDRESS:]PORT, log_format=FORMAT", "As the options of 'dedupfs mount'."),
    (
        "context=L, fscontext=L, defcontext=L, rootcontext=L",
        "Labels for SELinux, which root alone may give; see mount(8).",
    ),
    (
        "defaults, auto, noauto, user, users, owner, group, nofail, _netdev, nosuid, nodev, "
        "noatime and the like; x-...",
        "Accepted: about when to mount and who may, or what is so in any case. Of user and users "
        "noexec follows.",
    ),
    ("suid, dev, sync, remount, and unknown ones", "Refused by name, but not with -s."),
)
_HELPER_CODES = (
    ("0", "mounted; it answers"),
    ("1", "wrong arguments or options"),
    ("8", "interrupted"),
    ("32", "the mount could not be made"),
)


def _helper_page() -> str:
    """Return mount.dedupfs(8), which mount(8) runs: it has no --help that anybody would ask for."""
    tagged = [
        part
        for names, about in _HELPER_OPTIONS
        for part in (".TP", f"\\fB{_inline(names)}\\fR", _text(about))
    ]
    return _joined(
        _head("mount.dedupfs", "Mount a view of a store, for mount(8) and /etc/fstab", section=8),
        [
            ".SH SYNOPSIS",
            f"\\fBmount \\-t dedupfs\\fR {_inline('[-o OPTIONS] STORE MOUNTPOINT')}",
            ".PP",
            f"\\fBmount.dedupfs\\fR {_inline('STORE MOUNTPOINT [-sfnv] [-o OPTIONS] [-t TYPE]')}",
            ".SH DESCRIPTION",
            _text(
                "Does what 'dedupfs mount' does, in the background, but makes no store: a disk "
                "that is late would find one in its place. mount(8) looks for it in /sbin, so "
                "link it there from where dedupfs is installed, and umount.fuse.dedupfs, too, "
                "with which umount(8) waits until everything is put away. As mount.fuse.dedupfs it "
                "answers 'mount -o remount'."
            ),
            ".SH OPTIONS",
            *tagged,
            ".SH EXIT STATUS",
            *_codes(_HELPER_CODES),
            ".SH EXAMPLES",
            ".nf",
            _text("mount -t dedupfs /srv/store /mnt -o snapshot=step-1000,ro"),
            _text("/srv/store /srv/ckpts dedupfs view=training,allow_other,nofail 0 0"),
            ".fi",
            ".SH SEE ALSO",
            f"{_reference('dedupfs-mount')}, \\fBmount\\fR(8), \\fBfstab\\fR(5)",
        ],
    )


def _joined(*parts: list[str]) -> str:
    return "\n".join(line for part in parts for line in part) + "\n"


def _head(name: str, summary: str, section: int = 1) -> list[str]:
    # https://reproducible-builds.org/specs/source-date-epoch
    made_s = int(os.environ.get("SOURCE_DATE_EPOCH", time.time()))
    date = time.strftime("%Y-%m-%d", time.gmtime(made_s))
    title = f'.TH "{_inline(name.upper())}" "{section}" "{date}" "dedupfs {__version__}" "dedupfs"'
    return [title, ".SH NAME", f"{_inline(name)} \\- {_inline(summary.rstrip('.'))}"]


def _usage(context: click.Context, command: click.Command) -> str:
    words = " ".join(command.collect_usage_pieces(context))
    return f"\\fB{_inline(context.command_path)}\\fR {_inline(words)}"


def _summary(command: click.Command) -> str:
    paragraph = inspect.cleandoc(command.help or command.name or "").split("\n\n")[0]
    return " ".join(paragraph.replace(_BLOCK, "").split())


def _description(command: click.Command, *, heading: bool = True) -> list[str]:
    lines = [".SH DESCRIPTION"] if heading else []
    for position, paragraph in enumerate(_paragraphs(inspect.cleandoc(command.help or ""))):
        if position or not heading:
            lines.append(".PP")
        if not paragraph.startswith(_BLOCK):
            lines.append(_text(" ".join(paragraph.split())))
            continue
        rows = [row for row in paragraph.removeprefix(_BLOCK).split("\n") if row.strip()]
        if rows and re.fullmatch(r"Examples?:", rows[0].strip()):
            lines += [_text(rows[0].strip()), ".RS 4"]
            lines += [".nf", *(_text(row.strip()) for row in rows[1:]), ".fi", ".RE"]
        else:
            lines += [".nf", *map(_text, rows), ".fi"]
    return lines


def _paragraphs(text: str) -> list[str]:
    return [part.strip("\n") for part in re.split(r"\n\s*\n", text.strip("\n")) if part.strip()]


def _options(context: click.Context, command: click.Command, *, heading: bool = True) -> list[str]:
    records = [
        record
        for parameter in command.get_params(context)
        if (record := parameter.get_help_record(context)) is not None and record[1]
    ]
    lines = [".SH OPTIONS"] if heading and records else []
    for names, about in records:
        lines += [".TP", f"\\fB{_inline(' '.join(names.split()))}\\fR", _text(about or "")]
    return lines


def _exit_status() -> list[str]:
    return [
        ".SH EXIT STATUS",
        *_codes(_CODES),
    ]


def _codes(codes: Iterable[tuple[str, str]]) -> list[str]:
    return [part for code, about in codes for part in (".TP", f"\\fB{code}\\fR", _text(about))]


def _reference(name: str) -> str:
    return f"\\fB{_inline(name)}\\fR(1)"


def _inline(text: str) -> str:
    """Escape text for roff: what is typed stays what can be copied."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return (
        escaped.replace("'", "\\(aq")
        .replace("`", "\\(ga")
        .replace("^", "\\(ha")
        .replace("~", "\\(ti")
    )


def _text(line: str) -> str:
    """Return a line of text, which may begin with what is a request elsewhere."""
    escaped = _inline(line) or "\\&"
    return "\\&" + escaped if escaped.startswith(".") else escaped


COMMANDS: list[click.Command] = [man]
