"""The gRPC door beyond Triton's clients: lookup by tools, size, callers who leave, a router that dies."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc import StatusCode
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from router import Client
from router.ingress.grpc.health import HealthStatus
from router.ingress.grpc.messages import HEALTH_PACKAGE, HEALTH_SERVICE, SERVICE, message
from router.ingress.grpc.protocol import set_values, values
from tests.acceptance.conftest import Served, start

BODY = 1 << 20  # the policy's limits.body


@pytest.fixture
def channel(served: Served) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(served.told("grpc")) as opened:
        grpc.channel_ready_future(opened).result(10)
        yield opened


def stub(channel: grpc.Channel, method: str = "ModelInfer") -> Any:
    return channel.unary_unary(
        f"/{SERVICE}/{method}",
        request_serializer=lambda asked: asked.SerializeToString(),
        response_deserializer=message(f"{method}Response").FromString,
    )


def request(rows: int = 1, **parameters: Any) -> Any:
    asked = message("ModelInferRequest")(model_name="digits")
    set_values(asked.parameters, parameters)
    asked.inputs.add(name="image", datatype="FP32", shape=[rows, 1, 8, 8])
    asked.raw_input_contents.append(bytes(rows * 256))
    return asked


def failure(call: Any) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as raised:
        call()
    return raised.value


def test_typed_contents_are_answered_typed(channel: grpc.Channel) -> None:
    asked = message("ModelInferRequest")(model_name="digits")
    tensor = asked.inputs.add(name="image", datatype="FP32", shape=[2, 1, 8, 8])
    tensor.contents.fp32_contents.extend([0.5] * 128)
    answer = stub(channel)(asked, timeout=10)
    assert [output.name for output in answer.outputs] == ["label", "scores"]
    assert len(answer.outputs[0].contents.int64_contents) == 2
    assert len(answer.outputs[1].contents.fp32_contents) == 20
    assert not answer.raw_output_contents


def test_tools_can_look_the_protocol_up(channel: grpc.Channel) -> None:
    lookup = reflection_pb2_grpc.ServerReflectionStub(channel)
    asked = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE),
    ]
    listed, found = lookup.ServerReflectionInfo(iter(asked), timeout=10)
    assert [service.name for service in listed.list_services_response.service] == [SERVICE]
    file = FileDescriptorProto.FromString(found.file_descriptor_response.file_descriptor_proto[0])
    methods = "ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer"
    assert [method.name for method in file.service[0].method] == list(methods)


def test_a_probe_of_kubernetes_is_answered_and_a_watcher_is_told(channel: grpc.Channel) -> None:
    asked = message("HealthCheckRequest", HEALTH_PACKAGE)
    told = message("HealthCheckResponse", HEALTH_PACKAGE)
    about = {"request_serializer": asked.SerializeToString, "response_deserializer": told.FromString}
    check = channel.unary_unary(f"/{HEALTH_SERVICE}/Check", **about)
    assert check(asked(), timeout=10).status == HealthStatus.SERVING
    assert check(asked(service=SERVICE), timeout=10).status == HealthStatus.SERVING
    assert failure(lambda: check(asked(service="other"), timeout=10)).code() == StatusCode.NOT_FOUND
    watch = channel.unary_stream(f"/{HEALTH_SERVICE}/Watch", **about)(asked(), timeout=10)
    assert next(watch).status == HealthStatus.SERVING
    watch.cancel()


def test_a_message_may_be_as_large_as_the_policy_says(channel: grpc.Channel) -> None:
    infer = stub(channel)
    most = message("ModelInferRequest")(model_name="every")
    most.parameters["filler"].string_param = "x" * (BODY - 1_000)
    refused = failure(lambda: infer(most, timeout=10))
    assert (refused.code(), "'bool' is missing" in refused.details()) == (StatusCode.INVALID_ARGUMENT, True)
    most.parameters["filler"].string_param += "x" * 1_000
    refused = failure(lambda: infer(most, timeout=10))
    assert refused.code() == StatusCode.INVALID_ARGUMENT
    assert f"the policy's limits.body is {BODY}" in refused.details()


def test_a_message_that_is_far_too_large_is_refused_unread(channel: grpc.Channel) -> None:
    asked = message("ModelInferRequest")(model_name="digits", raw_input_contents=[bytes(65 << 20)])
    refused = failure(lambda: stub(channel)(asked, timeout=30))
    assert refused.code() == StatusCode.RESOURCE_EXHAUSTED
    assert stub(channel)(request(), timeout=10).outputs


def test_a_refusal_says_when_to_come_back(channel: grpc.Channel) -> None:
    refused: Any = failure(lambda: stub(channel)(request(latency_budget_ms=0.01), timeout=10))
    assert refused.code() == StatusCode.RESOURCE_EXHAUSTED
    trailing = dict(refused.trailing_metadata())
    assert trailing["kind"]
    assert int(trailing.get("retry-after", "1")) >= 1


def test_the_trace_comes_back(channel: grpc.Channel) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    _, call = stub(channel).with_call(request(), timeout=10, metadata=(("traceparent", trace),))
    assert dict(call.trailing_metadata())["traceparent"] == trace


def test_a_hold_that_is_over_leaves_the_request_to_be_asked_for(
    channel: grpc.Channel, client: Client
) -> None:
    late: Any = failure(
        lambda: stub(channel)(
            request(latency_budget_ms=60_000), timeout=10, metadata=(("prefer", "respond-async"),)
        )
    )
    assert late.code() == StatusCode.DEADLINE_EXCEEDED
    trailing = dict(late.trailing_metadata())
    assert trailing["location"] == f"/v2/requests/{trailing['id']}"
    assert client.job(trailing["id"]).result().outputs["label"].shape == (1,)


def test_a_port_in_use_is_refused_in_one_message(policy: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused = start(policy, tmp_path, "--grpc-port", str(port))
        assert refused.process.wait(60) == 1
    assert f"cannot listen on 127.0.0.1:{port}" in refused.said
    assert "choose --grpc-port" in refused.said


def replica(served: Served, deployment: str) -> psutil.Process:
    """The one process of a deployment; Ray writes its name where the command line was."""
    name = f"ServeReplica:hybrid-router:{deployment}"
    (found,) = [p for p in served.processes() if name in " ".join(p.cmdline())]
    return found


def answers_again(infer: Any, within_s: float) -> bool:
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        try:
            # HAProxy holds a call that came while there was no router, and gives it to the next one.
            answer = infer(request(), timeout=end - time.monotonic(), wait_for_ready=True)
            return bool(values(answer.parameters)["deadline_met"])
        except grpc.RpcError as error:
            assert error.code() in (StatusCode.UNAVAILABLE, StatusCode.RESOURCE_EXHAUSTED), error
    return False


def jobs_in_queue(served: Served) -> int:
    """What is accepted and not ended, as the router last saw it."""
    jobs: int = httpx.get(f"{served.url}/v2/models/digits/stats").json()["queue"]["jobs"]
    return jobs


def until_jobs(served: Served, wanted: Callable[[int], bool]) -> None:
    end = time.monotonic() + 10
    while not wanted(jobs_in_queue(served)):
        assert time.monotonic() < end, "the queue did not get there"
        time.sleep(0.05)


@pytest.fixture
def stopped_worker(served: Served) -> Iterator[psutil.Process]:
    """The batch worker, stopped, so that what is queued stays there."""
    worker = replica(served, "digits-batch")
    worker.suspend()
    yield worker
    worker.resume()


def test_a_caller_who_leaves_takes_the_queued_request_along(
    served: Served, channel: grpc.Channel, stopped_worker: psutil.Process
) -> None:
    before = jobs_in_queue(served)
    held = stub(channel).future(request(latency_budget_ms=50_000), timeout=40)
    until_jobs(served, lambda jobs: jobs == before + 1)
    held.cancel()
    until_jobs(served, lambda jobs: jobs == before)


def test_calls_in_flight_end_as_unavailable_when_the_router_dies(
    served: Served, channel: grpc.Channel, stopped_worker: psutil.Process
) -> None:
    infer = stub(channel)
    held = [infer.future(request(latency_budget_ms=50_000), timeout=40) for _ in range(8)]
    until_jobs(served, lambda jobs: jobs >= len(held))
    begun = time.monotonic()
    replica(served, "router").kill()
    ends: list[Any] = [future.exception(timeout=30) for future in held]
    assert time.monotonic() - begun < 5
    assert {end.code() for end in ends} == {StatusCode.UNAVAILABLE}, ends
    stopped_worker.resume()
    assert answers_again(infer, within_s=30)
