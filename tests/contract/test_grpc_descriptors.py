"""The packaged descriptors are what the compiler makes of the .proto files, and clients can be generated."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_tools import protoc

from router.ingress.grpc import messages
from router.ingress.grpc.messages import DESCRIPTORS, message, parse

FOLDER = DESCRIPTORS.parent
PROTOS = ("open_inference.proto", "health.proto")
#: A caller with generated code only. It prints the request's bytes.
CALLER = """
import sys
import open_inference_pb2 as oip
import open_inference_pb2_grpc

request = oip.ModelInferRequest(model_name="digits", raw_input_contents=[b"1234"])
request.inputs.add(name="x", datatype="FP32", shape=[1, 1])
request.parameters["latency_budget_ms"].int64_param = 50
assert open_inference_pb2_grpc.GRPCInferenceServiceStub
sys.stdout.buffer.write(request.SerializeToString())
"""


def compiled(*arguments: str) -> None:
    assert protoc.main(["protoc", f"-I{FOLDER}", *arguments]) == 0


def test_the_packaged_descriptors_are_those_of_the_proto_files(tmp_path: Path) -> None:
    compiled(f"--descriptor_set_out={tmp_path / 'fresh'}", *PROTOS)
    fresh = FileDescriptorSet.FromString((tmp_path / "fresh").read_bytes())
    packaged = FileDescriptorSet.FromString(DESCRIPTORS.read_bytes())
    assert packaged == fresh, f"compile the .proto files again: {messages.__doc__}"


def test_code_generated_from_the_proto_file_writes_what_the_router_reads(tmp_path: Path) -> None:
    compiled(f"--python_out={tmp_path}", f"--grpc_python_out={tmp_path}", PROTOS[0])
    (tmp_path / "caller.py").write_text(CALLER)
    sent = subprocess.run([sys.executable, "caller.py"], cwd=tmp_path, capture_output=True, check=True)
    expected = message("ModelInferRequest")(model_name="digits", raw_input_contents=[b"1234"])
    expected.inputs.add(name="x", datatype="FP32", shape=[1, 1])
    expected.parameters["latency_budget_ms"].int64_param = 50
    assert parse("ModelInferRequest", sent.stdout) == expected
