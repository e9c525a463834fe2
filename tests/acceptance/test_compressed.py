"""Compressed bodies both ways through a real server, small ones and such as a thread takes."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable

import httpx
import numpy as np
import orjson
import pytest

from optimizers.examples.digits import test_split as real_images
from router.ingress import encodings
from router.ingress.codec.protocol import HEADER_LENGTH
from tests.acceptance.conftest import Served

IMAGES, LABELS = real_images()
INFER = "/v2/models/digits/infer"


@pytest.mark.parametrize(
    ("coding", "pack", "unpack"),
    [("gzip", gzip.compress, gzip.decompress), ("deflate", zlib.compress, zlib.decompress)],
)
@pytest.mark.parametrize("rows", [1, 700])
def test_a_request_and_its_answer_go_compressed(
    served: Served, coding: str, pack: Callable[[bytes], bytes], unpack: Callable[[bytes], bytes], rows: int
) -> None:
    images = np.concatenate([IMAGES, IMAGES])[:rows]
    raw = images.astype("<f4").tobytes()
    entry = {"name": "image", "datatype": "FP32", "shape": list(images.shape)}
    head = orjson.dumps({"inputs": [{**entry, "parameters": {"binary_data_size": len(raw)}}]})
    headers = {
        HEADER_LENGTH: str(len(head)),  # of what is inside
        "Content-Encoding": coding,
        "Accept-Encoding": coding,
        "Latency-Budget-Ms": "2000",
    }
    with (
        httpx.Client() as client,
        client.stream("POST", served.url + INFER, content=pack(head + raw), headers=headers) as reply,
    ):
        body = b"".join(reply.iter_raw())
    assert reply.status_code == 200, body
    if rows > 1:
        assert reply.headers["content-encoding"] == coding
        unpacked = unpack(body)
        assert len(unpacked) > encodings.DEFLATE_HERE_BYTES > len(body)
        body = unpacked
    else:
        assert "content-encoding" not in reply.headers  # tiny ones are not worth it
    outputs = {output["name"]: output["data"] for output in orjson.loads(body)["outputs"]}
    right = sum(
        int(a == b) for a, b in zip(outputs["label"], np.concatenate([LABELS, LABELS])[:rows], strict=True)
    )
    assert right >= 0.9 * rows
