"""Read the metrics that a logger has kept, by the reader of the logger. Points are name of a metric -> (x, value) of each point, in order."""

import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

Points = dict[str, list[tuple[float, float]]]
Table = list[dict[str, Any]]


def of_tensorboard(folder: Path) -> Points:
    """Read the scalars of the event file. x is the step of the event."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (file,) = folder.rglob("events.out.tfevents.*")
    events = EventAccumulator(str(file))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def of_mlflow(folder: Path) -> tuple[Points, Table]:
    """Read the metrics and the table of the only run in a file store. x is the step of the metric."""
    from mlflow import MlflowClient

    client = MlflowClient(folder.as_uri())
    (run,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    points = {
        name: [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]
        for name in run.data.metrics
    }
    tables = [
        json.loads(Path(client.download_artifacts(run.info.run_id, file.path)).read_text())
        for file in client.list_artifacts(run.info.run_id)
        if file.path.endswith(".json")
    ]
    return points, _rows(tables)


def of_trackio(project: str) -> tuple[Points, Table]:
    """Read the metrics and the table of the only run of a project. x is the step of the row."""
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    (run,) = trackio.Api().runs(project)
    rows = SQLiteStorage.get_logs(project, run.name)
    scalars = [
        (row["step"], {name: value for name, value in row.items() if name not in ("step", "timestamp")}) for row in rows
    ]
    tables = [value["_value"] for _, row in scalars for value in row.values() if isinstance(value, Mapping)]
    return _by_name(scalars), [row for table in tables for row in table]


def of_wandb(folder: Path, x: str) -> tuple[Points, Table]:
    """Read the history and the table of an offline run. x is the metric `x`, which must be defined as the x-axis of other metrics."""
    rows, axes = [], []
    for record in _wandb_records(folder):
        if record.HasField("metric"):
            axes.append(record.metric.step_metric)
        if record.HasField("history"):
            items = record.history.item
            rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    assert x in axes, f"the run defines the axes {axes}"
    return _by_name((row[x], row) for row in rows if x in row), _rows(
        json.loads(file.read_text()) for file in folder.rglob("*.table.json")
    )


def _wandb_records(folder: Path) -> Iterator[Any]:
    """Yield the records of an offline run, as W&B's own messages.

    W&B has no reader in Python. The file has the form of LevelDB's log: a header of 7 bytes, then blocks of 32 KiB with pieces of records. A
    piece has a checksum (4 bytes), a length (2) and a type (1): a whole record, or its first, middle or last piece.
    """
    from wandb.proto import wandb_internal_pb2

    (file,) = folder.rglob("run-*.wandb")
    data = file.read_bytes()
    position, pieces = 7, b""
    while position < len(data):
        left_in_block = 32768 - position % 32768
        if left_in_block < 7:
            position += left_in_block
            continue
        length, kind = struct.unpack("<HB", data[position + 4 : position + 7])
        pieces += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last piece of a record
            record = wandb_internal_pb2.Record()
            record.ParseFromString(pieces)
            pieces = b""
            yield record


def _by_name(rows: Iterable[tuple[float, Mapping[str, Any]]]) -> Points:
    points: Points = {}
    for x, row in rows:
        for name, value in row.items():
            if isinstance(value, int | float):
                points.setdefault(name, []).append((x, value))
    return points


def _rows(tables: Iterable[Mapping[str, Any]]) -> Table:
    """Return the rows of tables that are written as columns and data."""
    return [dict(zip(table["columns"], row, strict=True)) for table in tables for row in table["data"]]
