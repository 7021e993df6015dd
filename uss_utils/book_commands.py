"""The command line's ``book``: all notebooks and documents as one site."""

from pathlib import Path
from typing import Annotated

import typer


def book(
    out: Annotated[
        Path | None, typer.Option(help="Folder of the site; runs/book if not given.")
    ] = None,
    notebooks: Annotated[
        Path | None,
        typer.Option(help="Show these executed notebooks, as runs/scenes/notebooks."),
    ] = None,
    check_links: Annotated[
        bool,
        typer.Option(
            "--check-links", help="Build nothing; ask whether outside links answer."
        ),
    ] = False,
) -> None:
    """Make a site of all notebooks: contents, search, no network needed.

    Writes HTML pages into runs/book: the notebooks as committed, or executed ones, and
    the documents. Exit status 1 where something in them is broken.
    """
    from uss_utils.book import broken_links, write_book

    if check_links:
        complaints = broken_links(notebooks)
        typer.echo("\n".join(complaints) or "every outside link answers")
    else:
        built = write_book(out, notebooks)
        complaints = built.warnings
        typer.echo("\n".join([*complaints, f"{built.pages} pages: {built.start}"]))
    if complaints:
        raise typer.Exit(1)
