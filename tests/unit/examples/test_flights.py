"""The flights example reads the package's files right: delays, time zones, weather, whole days."""

import zipfile
from pathlib import Path

import numpy as np
import pytest

from optimizers.examples import flights
from optimizers.runtimes.decision_tree import name_features
from optimizers.tensors import Array

HEADER = (
    "year,month,day,dep_time,sched_dep_time,dep_delay,arr_time,sched_arr_time,arr_delay,carrier,flight,"
    "tailnum,origin,dest,air_time,distance,hour,minute,time_hour"
)
LINES = [
    # On time to Houston, one hour behind; late over midnight to Los Angeles; cancelled; to San Juan.
    "2013,1,1,517,515,2,830,819,11,UA,1545,N1,EWR,IAH,227,1400,5,15,2013-01-01T10:00:00Z",
    "2013,1,5,2300,2230,30,201,131,30,B6,1,N2,JFK,LAX,330,2475,22,30,2013-01-06T03:00:00Z",
    "2013,1,5,NA,840,NA,NA,1020,NA,MQ,3531,N3,LGA,RDU,NA,431,8,40,2013-01-05T13:00:00Z",
    "2013,1,5,855,900,-5,1400,1345,15,DL,9,N4,JFK,SJU,200,1598,9,0,2013-01-05T14:00:00Z",
]
WEATHER = [
    "origin,year,month,day,hour,temp,dewp,humid,wind_dir,wind_speed,wind_gust,precip,pressure,visib,time_hour",
    "EWR,2013,1,1,5,39.0,26.0,59.4,270,10.4,NA,0,1012,10,2013-01-01T10:00:00Z",
    "JFK,2013,1,5,9,40.0,26.0,61.0,270,12.0,NA,0.1,1012,3,2013-01-05T14:00:00Z",
    "JFK,2013,1,5,22,41.0,26.0,62.0,270,NA,NA,0.2,1012,4,2013-01-06T03:00:00Z",
]
AIRPORTS = [
    "faa,name,lat,lon,alt,tz,dst,tzone",
    *(f"{faa},x,0,0,0,{tz},A,x" for faa, tz in (("JFK", -5), ("IAH", -6), ("LAX", -8), ("RDU", -5))),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with zipfile.ZipFile(tmp_path / "flights.csv.zip", "w") as archive:
        archive.writestr("flights.csv", "\n".join([HEADER, *LINES]))
    (tmp_path / "weather.csv").write_text("\n".join(WEATHER))
    (tmp_path / "airports.csv").write_text("\n".join(AIRPORTS))
    return tmp_path


def column(features: Array, name: str) -> list[float]:
    values: list[float] = features[:, flights.FEATURES.index(name)].tolist()
    return values


def test_flights_that_never_arrived_are_left_out(folder: Path) -> None:
    features, late, days = flights.table(folder)
    assert features.shape == (3, 30) and features.dtype == np.float32
    assert late.tolist() == [0, 1, 0], "15 minutes is not more than 15"
    assert days.tolist() == [1, 5, 5]


def test_flight_time_knows_zones_and_midnight(folder: Path) -> None:
    features, _, _ = flights.table(folder)
    assert column(features, "scheduled flight time [min]") == [244, 361, 225]
    assert column(features, "scheduled departure [h]") == [5.25, 22.5, 9.0]


def test_weather_is_that_of_airport_and_hour_and_the_last_known(folder: Path) -> None:
    features, _, _ = flights.table(folder)
    assert column(features, "wind [mph]") == pytest.approx([10.4, 12.0, 12.0])
    assert column(features, "visibility [miles]") == [10, 4, 3]


def test_flags_are_one_airport_and_one_airline(folder: Path) -> None:
    features, _, _ = flights.table(folder)
    assert column(features, "airport=JFK") == [0, 1, 1] and column(features, "airline=B6") == [0, 1, 0]
    flags = [i for i, f in enumerate(name_features(30, flights.FEATURES)) if f.level]
    np.testing.assert_array_equal(features[:, flags].sum(axis=1), 2)


def test_a_day_is_in_one_part_only(folder: Path) -> None:
    parts = flights.splits(folder)
    assert sum(len(p) for p in parts) == 3
    day_five = [np.sum(p.inputs["flight"][:, 2] != 244) for p in parts]
    assert sorted(day_five) == [0, 0, 2]
