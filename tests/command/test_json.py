# SPDX-License-Identifier: Apache-2.0
"""Every output of --json fits the schema, and the schema documents every field."""

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastjsonschema
import pytest

from lab import library, shell
from tapster import HistoryEvent, Host
from tests.repo.pages import SCHEMA

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("world")]

Tapster = Callable[..., dict[str, Any]]
DOCUMENT: dict[str, Any] = json.loads(SCHEMA.read_text("utf-8"))


def closed(schema: Any) -> Any:
    """Return a schema that refuses every field that it does not document."""
    if isinstance(schema, dict):
        schema = {key: closed(value) for key, value in schema.items()}
        if "properties" in schema:
            schema["additionalProperties"] = False
    return schema


def check(name: str, output: dict[str, Any]) -> None:
    """Validate an output by one definition of the schema."""
    whole = {**closed(DOCUMENT), "$ref": f"#/$defs/{name}"}
    # The checker knows drafts up to 7, in which definitions have another name.
    text = json.dumps(whole).replace("$defs", "definitions")
    draft = json.loads(text) | {"$schema": "http://json-schema.org/draft-07/schema#"}
    definitions = draft["definitions"]
    draft = {**definitions[name], "definitions": definitions}
    fastjsonschema.compile(draft)(output)


@pytest.fixture
def tapster(ledger: Path) -> Tapster:
    def run(*arguments: str, status: int = 0) -> dict[str, Any]:
        done = subprocess.run(
            [shell.TAPSTER, *arguments],
            env={**os.environ, "TAPSTER_LEDGER": str(ledger)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == status, done
        document: dict[str, Any] = json.loads(done.stdout or "{}")
        return document

    return run


def test_every_output_fits_the_schema(tapster: Tapster, ledger: Path) -> None:
    shell.sh("ip link add low type veth peer name far")
    shell.sh("ip link set low up")
    options = "--bridge br0 --label role=web --address 192.0.2.1 --no-guard --json"
    check("add", tapster("add", *options.split()))
    check("add", tapster("add", "--link", "low", "--mode", "vepa", "--json"))
    check("ls", tapster("ls", "--json"))
    check("show", tapster("show", "vnet0", "--json"))
    check("show_several", tapster("show", "vnet*", "--json"))
    check("set", tapster("set", "vnet0", "--outbound", "100:200:300", "--json"))
    check("ls", tapster("ls", "--json"))
    check("set", tapster("take", "vnet0", "--json"))
    shell.sh("ip link set vnet0 down")
    check("show", tapster("show", "vnet0", "--json"))
    check("doctor", tapster("doctor", "--json", status=1))
    check("recover", tapster("recover", "--dry-run", "--json"))
    tapster("rm", "--all")
    check("ls", tapster("ls", "--all", "--json"))
    check("who", tapster("who", "--json"))
    with Host(ledger, reaper=library.no_reaper) as host:
        refused = HistoryEvent(1.0, "refused", "", "vnet%d", "web", 1000, "no bridge")
        host.operations.context.ledger.record_event(refused)
    output = tapster("events", "--json")
    assert [event["lease"] for event in output["events"]][:1] == [None]
    check("events", output)
    shell.sh("ip link del vnet0")
    check("show", tapster("show", "vnet0", "--json"))
    check("recover", tapster("recover", "--json"))


def test_each_output_of_the_schema_is_validated() -> None:
    outputs = {
        name
        for name, definition in DOCUMENT["$defs"].items()
        if "version" in definition["properties"]
    }
    validated = {
        name
        for file in Path(__file__).parents[1].rglob("test_*.py")
        for name in re.findall(r'\bcheck\("(\w+)"', file.read_text("utf-8"))
    }
    assert outputs == validated & outputs


def test_the_schema_refuses_what_it_does_not_document(tapster: Tapster) -> None:
    output = tapster("add", "--json")
    output["lease"]["surprise"] = 1
    with pytest.raises(fastjsonschema.JsonSchemaException, match="surprise"):
        check("add", output)


def test_nothing_but_the_object_is_printed(tapster: Tapster) -> None:
    for verb in ("ls", "who", "recover"):
        assert set(tapster(verb, "--json")) >= {"version"}
