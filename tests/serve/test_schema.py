"""The server's OpenAPI document is true: whatever is made up from it is answered as it says, and never by a 5xx."""

import os
import subprocess
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,"
    "response_headers_conformance,negative_data_rejection,unsupported_method,ignored_auth"
)  # not that all that fits is taken: no document can say which adapters there are today


@pytest.mark.slow
def test_schemathesis_finds_nothing(server: SimpleNamespace, tmp_path: Path) -> None:
    program = Path(sysconfig.get_path("scripts")) / "schemathesis"
    ran = subprocess.run(
        [
            program, "run", f"{server.url}/openapi.json", "--checks", CHECKS, "--phases", "examples,coverage,fuzzing",
            "--max-examples", "12", "--generation-deterministic",
            "--header", f"Authorization: Bearer {server.keys['admin']}", "--no-color", "--continue-on-failure",
        ],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300,
        env=os.environ | {"PYTHONWARNINGS": "ignore"},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]
    counts = httpx.get(f"{server.url}/metrics").text
    for path in (
        "/v1/completions",
        "/v1/chat/completions",
        "/v1/images/generations",
    ):  # which were reached, not only refused
        for status in (200, 400, 401):
            assert f'fedgen_requests_total{{endpoint="{path}",status="{status}"}}' in counts
