"""The commands ``longtail data check``, ``stats``, ``show`` and ``pack``. Nothing heavy is imported before that."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longtail.errors import ConfigError, DataError, unknown_name

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from longtail.data.checking import Checked
    from longtail.data.prepare import Prepared
    from longtail.data.settings import DataSettings

data = typer.Typer(
    help="Look at a data set before training on it, or pack it.", no_args_is_help=True, rich_markup_mode=None
)

Spec = Annotated[
    str, typer.Argument(metavar="SPEC", help="A folder, a .csv, .txt or .npz file, or the name of a data set.")
]
Words = Annotated[list[str] | None, typer.Argument(metavar="data.KEY=value", help="Settings of the data.")]

SHOWN = 3


@data.command()
def check(
    spec: Spec,
    settings: Words = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Look at every image for what is wrong.

    Lists what must be mended (the exit code is then 3), and what is worth a look.
    """
    import json

    from longtail.data.checking import check_data

    asked = settings_of(spec, settings or [])
    checked = check_data(asked, lambda line: typer.echo(line, err=True))
    if as_json:
        typer.echo(json.dumps(checked.plain(), indent=1))
    else:
        _print_checked(checked)
    if checked.to_mend:
        kinds = "; ".join(dict.fromkeys(finding.what.splitlines()[0].rstrip(".") for finding in checked.to_mend))
        raise DataError(
            f"{checked.name} must be mended: {kinds}.", hint="The table above names them; --json names all."
        )


@data.command()
def stats(spec: Spec, settings: Words = None) -> None:
    """Count the images of every class.

    By split, as training would use them, with groups and imbalance. No image of a folder, list or CSV is opened.
    """
    from longtail.data.sheet import count_data

    asked = settings_of(spec, settings or [])
    counted = count_data(asked)
    console = _console()
    console.print(_counts_table(counted, asked))
    for line in _summary(counted, asked):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


@data.command()
def show(
    spec: Spec,
    settings: Words = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE.png", help="The picture to write (images.png).")] = None,
) -> None:
    """Draw a few images of every class.

    One sheet of training images, of the largest class first.
    """
    from longtail.data.sheet import sheet
    from longtail.files import disk_error

    asked = settings_of(spec, settings or [])
    file = out or Path("images.png")
    if file.suffix.lower() != ".png":
        raise ConfigError(f"--out {file}: the sheet is a .png file.", hint="Let its name end in .png")
    if out is None and file.exists():
        raise ConfigError(f"{file} exists already.", hint="Say where the picture is to go: --out FILE.png")
    page, rows, classes = sheet(asked)
    try:
        page.save(file, format="PNG")
    except OSError as error:
        raise disk_error(file, error) from None
    of = "" if rows == classes else f" of {classes}, from the largest to the smallest"
    typer.echo(f"{file}: {rows} classes{of}, largest first")


@data.command("pack")
def pack_command(
    spec: Spec,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="The new folder to write.")],
    settings: Words = None,
    megabytes: Annotated[
        int, typer.Option("--shard-megabytes", metavar="N", min=1, help="A shard has at most so many, or one image.")
    ] = 512,
    shorter_side: Annotated[
        int | None, typer.Option(metavar="PIXELS", min=1, help="Shrink images whose shorter side has more.")
    ] = None,
) -> None:
    """Write image files as tar shards.

    WebDataset reads them too; the new FOLDER is then a data.path. Images are copied byte by byte, but for those that
    --shorter-side shrinks, which are then decoded in a fraction of the time.
    """
    from longtail.data.packing import pack

    asked = settings_of(spec, settings or [])
    packed = pack(asked, out, megabytes, lambda line: typer.echo(line, err=True), shorter_side=shorter_side)
    sets = ", ".join(f"{count:,} {split}" for split, count in packed.images.items())
    shards = f"{packed.shards:,} shard" + ("" if packed.shards == 1 else "s")
    shrunk = "" if shorter_side is None else f", {packed.shrunk:,} shrunk"
    typer.echo(f"{out}: {sets} images{shrunk} in {shards}, {packed.size / 2**20:,.1f} MB")


def settings_of(spec: str, words: list[str]) -> DataSettings:
    """The settings that SPEC and ``data.key=value`` words stand for: a preset, and the words laid over it.

    Raises ConfigError for a name that is none, a file of no known kind, and words beside ``data.*``; DataError for a
    path with nothing there.
    """
    from longtail.data.settings import DATA_NAMES, check_complete
    from longtail.layers import merge, parse_assignments
    from longtail.recipes import load_config

    values = parse_assignments(words)
    if set(values) - {"data"} or not isinstance(values.get("data", {}), dict):
        other = next(iter(set(values) - {"data"}), "data")
        raise ConfigError(f"'{other}' is no setting of the data.", hint="Give words like data.size=32.")
    known = [name for name in DATA_NAMES if name != "arrays"]
    own: dict[str, Any] = {"name": spec} if spec in known else _by_path(spec, values.get("data", {}), known)
    asked = load_config(f"{own['name']}/ce", merge({"data": own}, values)).data
    check_complete(asked)
    return asked


def _by_path(spec: str, given: dict[str, Any], known: list[str]) -> dict[str, Any]:
    from longtail.data.settings import KINDS

    try:
        path = Path(spec).expanduser()
        there, is_folder = path.exists(), path.is_dir()
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(f"Cannot look at {spec}: {error}") from None
    if not there:
        if path.suffix or "/" in spec:
            raise DataError(f"There is nothing at {spec}.", hint="Give a path, or one of: " + ", ".join(known))
        raise unknown_name("data set", spec, known)
    name = given.get("name") or ("folder" if is_folder else KINDS.get(path.suffix.lower()))
    if name is None:
        raise ConfigError(
            f"{spec} is a file of no kind that is known by its name ({', '.join(KINDS)}).",
            hint="Say what it is, e.g. data.name=list",
        )
    if name not in known:
        raise unknown_name("data set", str(name), known)
    return {"name": name, "path": str(path)}


def _console() -> Console:
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=120)


def _print_checked(checked: Checked) -> None:
    from rich.table import Table
    from rich.text import Text

    from longtail.data.reading.listing import first_few, shown

    console = _console()
    sets = ", ".join(f"{count:,} {split}" for split, count in checked.images.items())
    head = f"{checked.name}: {sets or 'no'} images, {checked.classes} classes"
    console.print(head, markup=False, highlight=False, soft_wrap=True)
    if not checked.findings:
        console.print("nothing to mend, nothing to look at", markup=False)
        return
    table = Table("", "found", "how many", "the first of them", show_lines=True)
    for finding in checked.findings:
        where = "\n".join(first_few([shown(line, 200) for line in finding.where], SHOWN))
        many = f"{len(finding.where):,}" if finding.where else ""
        verdict = Text("mend", style="bold red") if finding.mend else Text("look")
        table.add_row(verdict, Text(finding.what), Text(many, justify="right"), Text(where))
    console.print(table)


def _counts_table(counted: Prepared, asked: DataSettings) -> Table:
    from rich.table import Table
    from rich.text import Text

    from longtail.data.reading.listing import shown

    groups = counted.stats.groups(*asked.groups)
    of_class = {k: group for group, members in groups.items() for k in members}
    classes = len(counted.class_names)
    columns = {"train": counted.stats.counts}
    if counted.val is not None:
        columns["val"] = counted.val.counts(classes)
    columns[counted.evaluated_on] = counted.evaluation.counts(classes)
    table = Table("class", *columns, "group")
    for column in table.columns[1:-1]:
        column.justify = "right"
    for k, name in enumerate(counted.class_names):
        cells = [Text(f"{counts[k]:,}") for counts in columns.values()]
        table.add_row(Text(shown(name)), *cells, Text(of_class[k]))
    return table


def _summary(counted: Prepared, asked: DataSettings) -> list[str]:
    counts = counted.stats.counts
    groups = counted.stats.groups(*asked.groups)
    imbalance = f"{max(counts) / min(counts):.1f}" if min(counts) else "-"
    sizes = ", ".join(f"{len(members)} {group}" for group, members in groups.items())
    total = f"{sum(counts):,} training images in {len(counts)} classes, {max(counts):,} to {min(counts):,} a class"
    return [
        f"{total}: imbalance {imbalance}",
        f"groups (data.groups={list(asked.groups)}): {sizes}",
        f"reported on {len(counted.evaluation):,} {counted.evaluated_on} images",
        *(f"note: {note}" for note in counted.notes),
    ]
