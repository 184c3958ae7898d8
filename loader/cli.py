"""`forebay dataset build | info | head | verify`: datasets in the store, without torch.

What the commands run is imported when they run: every ``forebay`` command loads this module to know that they exist.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from client.cli.connection import connect
from client.cli.output import AsJson, Column, Output, human_size, plural
from client.cli.paths import parse_store_path
from client.cli.report import FAILED
from client.names import format_url

if TYPE_CHECKING:
    from client.objects import ObjectStore
    from loader.build import BuildResult
    from loader.columns import Schema
    from loader.reader import DatasetReader
    from loader.summary import DatasetSummary
    from loader.verify import DatasetHealth

__all__ = ["build", "export", "head", "info", "register", "verify"]

MAX_FAULTS_SHOWN = 20
Dataset = Annotated[str, typer.Argument(metavar="BUCKET/KEY", help="The dataset; forebay://bucket/key is the same.")]
Version = Annotated[int | None, typer.Option("--version", help="This version, not the current one.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the ``forebay`` command line."""
    group = typer.Typer(help="Build datasets and look into them.", no_args_is_help=True)
    for command in (build, info, head, verify, export):
        group.command()(command)
    app.add_typer(group, name="dataset")


def build(
    ctx: typer.Context,
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SRC...",
            help="Paths or URLs: Parquet, JSON lines, CSV (also .gz, .zst), .npy, .npz, WebDataset's tars, folders of "
            "MosaicML's MDS, LitData or Hugging Face's save_to_disk, or any files, a row each.",
        ),
    ],
    target: Dataset,
    columns: Annotated[
        str | None, typer.Option(metavar="NAME=TYPE,...", help="Columns to take, such as 'tokens=uint16[2048],text=str'.")
    ] = None,
    compression: Annotated[str, typer.Option(help="zstd:1 to zstd:22, or none.")] = "zstd:3",
    block_size_bytes: Annotated[
        int | None, typer.Option(help="Decoded bytes of a block; 1 MiB by default, 4 MiB is right from 1 TB up.")
    ] = None,
    num_lanes: Annotated[
        int | None, typer.Option(help="By default up to 256; 1024 where more than 256 ranks will read.")
    ] = None,
    num_workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="What reads the input; by default one on each core.")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on where the same command was killed, and leave what it takes to go on from this one."
        ),
    ] = False,
    on_ray: Annotated[
        bool, typer.Option("--ray", help="Build on the machines of the Ray cluster that RAY_ADDRESS names; needs forebay[ray].")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Build a dataset from files. Rows keep the order of the input; nothing is visible before all of it is."""
    from loader.build import build_dataset, plan_build
    from loader.sources import parse_columns

    out, path = Output(as_json=as_json), parse_store_path(target).require_object()
    plan = plan_build(sources, columns=None if columns is None else parse_columns(columns))
    inferred = "inferred from the first rows; --columns takes others" if columns is None else "as given"
    out.note(f"columns ({inferred}): {_columns_text(plan.schema)}")
    if plan.source.note is not None:
        out.note(plan.source.note)
    with connect(ctx) as store, out.progress("build", total=plan.source.input_bytes) as progress:
        result = build_dataset(
            plan,
            format_url(path.bucket, path.key),
            compression=compression,
            block_size_bytes=block_size_bytes,
            num_lanes=num_lanes,
            num_workers=num_workers,
            on_ray=on_ray,
            resume=resume,
            client=store,
            on_bytes=progress.advance,
        )
    out.document(_result_json(result), _result_text(result))


def info(
    ctx: typer.Context,
    dataset: Dataset,
    version: Version = None,
    world_size: Annotated[int | None, typer.Option(min=1, help="Say whether so many ranks are too many for its lanes.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what a dataset is: columns, rows, lanes, sizes, digest, and how the nodes share it."""
    from loader.lanes import sharing_warning
    from loader.summary import summarize

    out = Output(as_json=as_json)
    with connect(ctx) as store:
        summary = summarize(_open(store, dataset, version=version), store)
    warning = None if world_size is None else sharing_warning(summary.index.num_lanes, world_size=world_size)
    if as_json:
        out.document({**summary.to_json(), "warning": warning}, "")
    else:
        _print_summary(out, summary)
    if warning is not None:
        out.note(f"warning: {warning}")


def head(
    ctx: typer.Context,
    dataset: Dataset,
    num_rows: Annotated[int, typer.Option("-n", "--num-rows", min=0, help="How many rows.")] = 5,
    version: Version = None,
    as_json: AsJson = False,
) -> None:
    """Show the first rows in written order; with --json whole, one object a line, bytes as {"base64": ...}."""
    from loader.preview import row_json, row_text

    out = Output(as_json=as_json)
    with connect(ctx) as store:
        reader = _open(store, dataset, version=version)
        for number, row in enumerate(reader.rows(0, num_rows)):
            out.document(row_json(row) if as_json else {}, row_text(number, row, reader.schema))


def verify(ctx: typer.Context, dataset: Dataset, version: Version = None, as_json: AsJson = False) -> None:
    """Decode and check every block of every column, count rows, and compute the digest anew. Exits with 1 at any fault."""
    from loader.verify import verify_dataset

    out = Output(as_json=as_json)
    with connect(ctx) as store:
        reader = _open(store, dataset, version=version)
        with out.progress("verify", total=reader.num_blocks, unit="count") as progress:
            health = verify_dataset(reader, on_blocks=progress.advance)
    out.document({"url": reader.url, **health.to_json()}, _health_text(reader, health))
    if not health.clean:
        for fault in health.faults[:MAX_FAULTS_SHOWN]:
            out.note(f"fault: {fault}")
        if len(health.faults) > MAX_FAULTS_SHOWN:
            out.note(f"and {plural(len(health.faults) - MAX_FAULTS_SHOWN, 'more fault')}; --json shows all")
        out.note("hint: `forebay verify` counts the copies of its chunks; damaged ones are repaired from the others")
        raise typer.Exit(FAILED)


def export(
    ctx: typer.Context,
    dataset: Dataset,
    target: Annotated[str, typer.Argument(metavar="DST", help="A new or empty folder: a path, or a URL that fsspec writes.")],
    file_format: Annotated[str, typer.Option("--format", help="parquet, or mds for MosaicML Streaming.")],
    compression: Annotated[str, typer.Option(help="zstd:1 to zstd:22, or none.")] = "zstd:3",
    version: Version = None,
    as_json: AsJson = False,
) -> None:
    """Write a dataset as files of another format, rows in written order."""
    from loader.export import export_dataset, parse_format

    out = Output(as_json=as_json)
    with connect(ctx) as store:
        reader = _open(store, dataset, version=version)
        with out.progress("export", total=reader.index.num_rows, unit="count") as progress:
            result = export_dataset(
                reader, target, file_format=parse_format(file_format), compression=compression, on_rows=progress.advance
            )
    text = f"wrote {result.target}: {plural(result.num_rows, 'row')} in {plural(result.num_files, 'file')}, "
    out.document(asdict(result), text + human_size(result.size_bytes))


def _open(store: ObjectStore, dataset: str, *, version: int | None) -> DatasetReader:
    from loader.reader import DatasetReader

    path = parse_store_path(dataset).require_object()
    return DatasetReader(store, path.bucket, path.key, version=version)


def _columns_text(schema: Schema) -> str:
    return ", ".join(f"{name}={column_type}" for name, column_type in schema.items())


def _result_json(result: BuildResult) -> dict[str, Any]:
    return {
        "url": format_url(result.info.bucket, result.info.key),
        "version": result.info.version,
        "etag": result.info.etag,
        "digest": result.index.digest,
        "rows": result.index.num_rows,
        "lanes": result.index.num_lanes,
        "blocks": sum(lane.num_blocks for lane in result.index.lanes),
        "columns": result.index.schema.to_json(),
        "input_bytes": result.input_bytes,
        "resumed_rows": result.resumed_rows,
        "stored_bytes": result.info.size,
        "seconds_s": round(result.seconds_s, 3),
        "metadata": dict(result.info.metadata),
    }


def _result_text(result: BuildResult) -> str:
    resumed = f" (went on at row {result.resumed_rows})" if result.resumed_rows else ""
    return (
        f"built {format_url(result.info.bucket, result.info.key)}: {plural(result.index.num_rows, 'row')}, "
        f"{plural(len(result.index.schema), 'column')}, {plural(result.index.num_lanes, 'lane')}; "
        f"{human_size(result.info.size)} from {human_size(result.input_bytes)} in {result.seconds_s:.1f} s{resumed}; "
        f"digest {result.index.digest}"
    )


def _print_summary(out: Output, summary: DatasetSummary) -> None:
    fields: dict[str, Column] = {
        "url": "text",
        "version": "number",
        "digest": "text",
        "created_s": "time",
        "replicas": "number",
        "rows": "number",
        "lanes": "number",
        "blocks": "number",
        "block_size_bytes": "size",
        "compression": "text",
        "stored_bytes": "size",
        "decoded_bytes": "size",
        "ratio": "number",
    }
    value = summary.to_json()
    out.fields(value, fields)
    out.note("columns:")
    out.table(value["columns"], {"name": "text", "type": "text", "stored_bytes": "size", "decoded_bytes": "size"})
    out.note("nodes:")
    out.table(value["nodes"], {"node_id": "text", "lanes": "number", "first_lanes": "number", "stored_bytes": "size"})


def _health_text(reader: DatasetReader, health: DatasetHealth) -> str:
    counted = f"{plural(health.rows, 'row')} in {plural(health.blocks, 'block')}, {human_size(health.decoded_bytes)} decoded"
    if health.clean:
        return f"{reader.url}: {counted}, all as written; digest {health.digest}"
    total = reader.index.num_rows
    return f"{reader.url}: {plural(len(health.faults), 'fault')}; {counted} of {plural(total, 'row')} are as written"
