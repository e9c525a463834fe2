"""The spec of taking in a model that was made elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from optimizers.passes.spec import PassSpec


@dataclass(frozen=True)
class ImportOnnx(PassSpec):
    """The model in an ONNX ``file`` in the original's place, for one that was optimized elsewhere."""

    kind: ClassVar[str] = "import_onnx"
    file: str = ""

    def __post_init__(self) -> None:
        if not self.file:
            raise self.refusal("file", "name an ONNX file")
