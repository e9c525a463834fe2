"""Triton's own clients from PyPI, as they are, against a live server: HTTP and gRPC, sync and async."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tritonclient.grpc as over_grpc
import tritonclient.grpc.aio as over_grpc_aio
import tritonclient.http as over_http
import tritonclient.http.aio as over_http_aio
from tritonclient.utils import InferenceServerException

from optimizers.tensors import DTYPES, Array, Tensors
from tests.acceptance.conftest import Served
from tests.support.every_datatype import sample, swapped

MODULES = {"http": over_http, "grpc": over_grpc}
SYNC = pytest.mark.parametrize("protocol", MODULES)
Made = dict[str, Any]


def address(served: Served, protocol: str) -> str:
    return served.told("grpc") if protocol == "grpc" else served.url.removeprefix("http://")


@pytest.fixture(scope="module")
def clients(served: Served) -> Iterator[Made]:
    made = {
        "http": over_http.InferenceServerClient(address(served, "http"), concurrency=8),
        "grpc": over_grpc.InferenceServerClient(address(served, "grpc")),
    }
    yield made
    for client in made.values():
        client.close()


@pytest.fixture
async def async_clients(served: Served) -> AsyncIterator[Made]:
    async with (
        over_http_aio.InferenceServerClient(address(served, "http")) as http,
        over_grpc_aio.InferenceServerClient(address(served, "grpc")) as rpc,
    ):
        yield {"http": http, "grpc": rpc}


def given(protocol: str, tensors: Tensors, **how: Any) -> list[Any]:
    """The tensors as a client's inputs; BF16, which numpy has not, by the type that the client asks for."""
    inputs = []
    for name, array in tensors.items():
        datatype = name.upper() if name.upper() in DTYPES else "FP32"
        one = MODULES[protocol].InferInput(name, list(array.shape), datatype)
        one.set_data_from_numpy(array.astype(ml_dtypes.bfloat16) if datatype == "BF16" else array, **how)
        inputs.append(one)
    return inputs


def assert_swapped(result: Any, tensors: Tensors) -> None:
    """The model exchanges the two columns of each input, and no value may change on the way."""
    for name, array in tensors.items():
        got = result.as_numpy(f"{name}_out")
        assert got is not None, name
        if name == "bf16":
            got = got.astype(np.float32)
        elif name == "bytes":  # JSON has text only, and the client leaves it at that
            items = [item.encode() if isinstance(item, str) else item for item in got.ravel()]
            got = np.array(items, dtype=object).reshape(got.shape)
        assert got.dtype == array.dtype, name
        assert np.array_equal(got, swapped(array)), name


def told(protocol: str, result: Any) -> dict[str, Any]:
    """The answer's parameters."""
    response = result.get_response()
    if protocol == "http":
        parameters: dict[str, Any] = response["parameters"]
        return parameters
    chosen = (
        (name, entry, entry.WhichOneof("parameter_choice")) for name, entry in response.parameters.items()
    )
    return {name: getattr(entry, choice) for name, entry, choice in chosen}


def identity(protocol: str, result: Any) -> tuple[str, str, str]:
    response = result.get_response()
    names = ("model_name", "model_version", "id")
    model, version, id_ = (response[n] if protocol == "http" else getattr(response, n) for n in names)
    return model, version, id_


def image(rows: int = 1) -> Array:
    return np.zeros((rows, 1, 8, 8), np.float32)


@SYNC
def test_the_server_and_its_models_describe_themselves(clients: Made, protocol: str) -> None:
    client = clients[protocol]
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("every")
    assert client.is_model_ready("digits", "int8")
    assert not client.is_model_ready("nope")
    as_json = {"as_json": True} if protocol == "grpc" else {}
    server, model = client.get_server_metadata(**as_json), client.get_model_metadata("digits", **as_json)
    assert (server["name"], bool(server["version"])) == ("hybrid-router", True)
    assert (model["name"], model["versions"]) == ("digits", ["float32", "int8", "tree"])
    assert [(i["name"], i["datatype"], [int(n) for n in i["shape"]]) for i in model["inputs"]] == [
        ("image", "FP32", [-1, 1, 8, 8])
    ]
    assert [o["name"] for o in model["outputs"]] == ["label", "scores"]


@SYNC
@pytest.mark.parametrize("rows", [1, 5])
def test_every_datatype_goes_there_and_back(clients: Made, protocol: str, rows: int) -> None:
    tensors = sample(rows, seed=rows)
    result = clients[protocol].infer("every", given(protocol, tensors), request_id="mine", timeout=900_000)
    assert_swapped(result, tensors)
    assert identity(protocol, result) == ("every", "plain", "mine")
    how = told(protocol, result)
    assert (how["route"], how["path"], how["variant"]) == ("interactive", "online", "plain")
    assert how["deadline_met"] is True
    assert how["predicted_ms"] > 0
    assert how["queued_ms"] >= 0


def test_every_datatype_that_http_knows_in_json_goes_in_json(clients: Made) -> None:
    tensors = sample(3)
    json_only = {name: array for name, array in tensors.items() if name not in ("fp16", "bf16")}
    inputs = given("http", json_only, binary_data=False)
    inputs += given("http", {name: tensors[name] for name in ("fp16", "bf16")})
    outputs = [over_http.InferRequestedOutput(f"{name}_out", binary_data=name == "bf16") for name in tensors]
    assert_swapped(clients["http"].infer("every", inputs, outputs=outputs), tensors)


@SYNC
def test_only_the_outputs_asked_for_come(clients: Made, protocol: str) -> None:
    tensors = sample(2)
    wanted = [MODULES[protocol].InferRequestedOutput(name) for name in ("int8_out", "bytes_out")]
    result = clients[protocol].infer("every", given(protocol, tensors), outputs=wanted)
    assert_swapped(result, {name: tensors[name] for name in ("int8", "bytes")})
    assert result.as_numpy("fp32_out") is None


@SYNC
def test_a_version_pins_the_variant(clients: Made, protocol: str) -> None:
    result = clients[protocol].infer("digits", given(protocol, {"image": image()}), model_version="tree")
    assert identity(protocol, result)[1] == "tree"
    assert result.as_numpy("scores").shape == (1, 10)


@SYNC
def test_the_timeout_is_the_latency_budget(clients: Made, protocol: str) -> None:
    inputs = given(protocol, {"image": image()})
    with pytest.raises(InferenceServerException) as refused:
        clients[protocol].infer("digits", inputs, timeout=1)
    assert "budget is 0.001 ms" in refused.value.message()
    assert refused.value.status() == {"http": "429", "grpc": "StatusCode.RESOURCE_EXHAUSTED"}[protocol]
    # Over 30 s the policy sends it to the queue: it is held, and answered by the batch worker.
    result = clients[protocol].infer("digits", inputs, timeout=40_000_000)
    assert (told(protocol, result)["path"], told(protocol, result)["variant"]) == ("batch", "int8")
    assert result.as_numpy("label").shape == (1,)


@SYNC
def test_the_budget_may_come_in_a_header_as_well(clients: Made, protocol: str) -> None:
    inputs = given(protocol, {"image": image()})
    result = clients[protocol].infer("digits", inputs, headers={"latency-budget-ms": "40000"})
    assert told(protocol, result)["path"] == "batch"
    mine = clients[protocol].infer("digits", inputs, parameters={"latency_budget_ms": 900})
    assert told(protocol, mine)["path"] == "online"


@pytest.mark.parametrize("there", [None, "gzip", "deflate"])
@pytest.mark.parametrize("back", [None, "gzip", "deflate"])
def test_compressed_bodies(clients: Made, there: str | None, back: str | None) -> None:
    tensors = sample(40)
    result = clients["http"].infer(
        "every",
        given("http", tensors),
        request_compression_algorithm=there,
        response_compression_algorithm=back,
    )
    assert_swapped(result, tensors)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_messages(clients: Made, algorithm: str) -> None:
    tensors = sample(40)
    assert_swapped(
        clients["grpc"].infer("every", given("grpc", tensors), compression_algorithm=algorithm), tensors
    )


CODES = {"404": "NOT_FOUND", "400": "INVALID_ARGUMENT", "422": "INVALID_ARGUMENT", "413": "INVALID_ARGUMENT"}


@SYNC
@pytest.mark.parametrize(
    ("about", "tensors", "status", "says"),
    [
        ({"model_name": "nope"}, {"image": image()}, "404", "no model 'nope' here"),
        ({"model_version": "nope"}, {"image": image()}, "404", "has no variant 'nope'"),
        ({}, {"image": image()[:, :, :7]}, "422", "the model takes shape [-1, 1, 8, 8]"),
        ({}, {"int8": np.zeros((1, 1), np.int8)}, "422", "input 'image' is missing"),
        ({}, {"image": image(), "fp64": np.zeros((1, 1))}, "422", "unknown input 'fp64'"),
        ({}, {"image": image(1_001)}, "413", "1001 rows in one request; the policy's limits.rows is 1000"),
        ({}, {"image": image(5_000)}, "413", "limits.body"),
        (
            {"outputs": "nope"},
            {"image": image()},
            "400",
            "unknown output 'nope'; the model gives label, scores",
        ),
    ],
)
def test_what_is_wrong_is_said_alike_on_both_doors(
    clients: Made, protocol: str, about: dict[str, str], tensors: Tensors, status: str, says: str
) -> None:
    settings: dict[str, Any] = {"model_name": "digits", **about}
    if "outputs" in settings:
        settings["outputs"] = [MODULES[protocol].InferRequestedOutput(settings["outputs"])]
    with pytest.raises(InferenceServerException) as wrong:
        clients[protocol].infer(inputs=given(protocol, tensors), **settings)
    assert says in wrong.value.message()
    assert wrong.value.status() == (status if protocol == "http" else f"StatusCode.{CODES[status]}")


@SYNC
def test_a_wrong_datatype_is_named(clients: Made, protocol: str) -> None:
    wrong = MODULES[protocol].InferInput("image", [1, 1, 8, 8], "FP64")
    wrong.set_data_from_numpy(image().astype(np.float64))
    with pytest.raises(InferenceServerException, match="the model takes FP32, got FP64"):
        clients[protocol].infer("digits", [wrong])


@SYNC
def test_what_triton_offers_beside_the_protocol_is_not_taken_for_something_else(
    clients: Made, protocol: str
) -> None:
    client, module, inputs = clients[protocol], MODULES[protocol], given(protocol, {"image": image()})
    with pytest.raises(InferenceServerException, match="classification is not offered"):
        client.infer("digits", inputs, outputs=[module.InferRequestedOutput("scores", class_count=3)])
    with pytest.raises(InferenceServerException, match=r"keep no state .* \(parameter 'sequence_id'\)"):
        client.infer("digits", inputs, sequence_id=7, sequence_start=True)
    shared = module.InferInput("image", [1, 1, 8, 8], "FP32")
    shared.set_shared_memory("region", 256, offset=64)
    with pytest.raises(InferenceServerException, match="shared memory is not offered"):
        client.infer("digits", [shared])
    output = module.InferRequestedOutput("scores")
    output.set_shared_memory("region", 256)
    with pytest.raises(InferenceServerException, match="shared memory is not offered"):
        client.infer("digits", inputs, outputs=[output])
    # What its clients send by themselves, and a wish that the protocol lets a server pass over.
    chosen = [module.InferRequestedOutput("scores", class_count=0)]
    defaults = {"sequence_id": 0, "sequence_start": False, "sequence_end": False, "timeout": 900_000}
    for priority in (0, 3):
        answer = client.infer("digits", inputs, outputs=chosen, priority=priority, **defaults)
        assert answer.as_numpy("scores").shape == (1, 10)


def test_the_model_repository_is_not_offered(clients: Made) -> None:
    with pytest.raises(InferenceServerException) as unknown:
        clients["grpc"].get_model_repository_index()
    assert unknown.value.status() == "StatusCode.UNIMPLEMENTED"


def test_what_is_not_a_number_goes_in_json_as_the_client_writes_it(clients: Made) -> None:
    tensors = sample(3)
    tensors["fp32"] = np.array([[np.nan, 1.5], [np.inf, -np.inf], [0, 2]], np.float32)
    inputs = given("http", {"fp32": tensors["fp32"]}, binary_data=False)
    inputs += given("http", {name: array for name, array in tensors.items() if name != "fp32"})
    got = clients["http"].infer("every", inputs).as_numpy("fp32_out")
    assert np.array_equal(got, swapped(tensors["fp32"]), equal_nan=True)


@SYNC
def test_many_asynchronous_requests_are_each_given_their_own_answer(clients: Made, protocol: str) -> None:
    count = 300  # more than one HTTP/2 connection's usual hundred streams
    client, batches = clients[protocol], [sample(2, seed) for seed in range(count)]
    if protocol == "http":
        sent = [client.async_infer("every", given(protocol, batch)) for batch in batches]
        results = [one.get_result() for one in sent]
    else:
        done: queue.Queue[tuple[int, Any, Any]] = queue.Queue()
        for index, batch in enumerate(batches):

            def keep(result: Any, error: Any, index: int = index) -> None:
                done.put((index, result, error))

            client.async_infer("every", given(protocol, batch), keep)
        ended = {index: (result, error) for index, result, error in (done.get(True, 30) for _ in batches)}
        assert not [error for _, error in ended.values() if error]
        results = [ended[index][0] for index in range(count)]
    for result, batch in zip(results, batches, strict=True):
        assert_swapped(result, batch)


@SYNC
async def test_the_asyncio_clients(async_clients: Made, protocol: str) -> None:
    client = async_clients[protocol]
    assert await client.is_server_ready()
    assert await client.is_model_ready("every")
    batches = [sample(3, seed) for seed in range(40)]
    results = await asyncio.gather(
        *(client.infer("every", given(protocol, batch), timeout=900_000) for batch in batches)
    )
    for result, batch in zip(results, batches, strict=True):
        assert_swapped(result, batch)
    with pytest.raises(InferenceServerException, match="no model 'nope'"):
        await client.infer("nope", given(protocol, {"image": image()}))
