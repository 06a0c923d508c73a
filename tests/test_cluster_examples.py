"""The examples of clusters: they parse, their parts find each other, and their commands exist."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tharsis import app

EXAMPLES = Path(__file__).resolve().parents[1] / "docs" / "examples"
yaml = pytest.importorskip("yaml")


@pytest.fixture(scope="module")
def kubernetes():
    text = (EXAMPLES / "kubernetes.yaml").read_text(encoding="utf-8")
    return {(each["kind"], each["metadata"]["name"]): each for each in yaml.safe_load_all(text)}


def pod(resource):
    return resource["spec"]["template"]["spec"]


def options_of_reconstruct():
    return CliRunner().invoke(app, ["reconstruct", "--help"], env={"COLUMNS": "200"}).output


def test_workers_and_job_reach_the_scheduler(kubernetes):
    service = kubernetes["Service", "tharsis-scheduler"]
    port = service["spec"]["ports"][0]["port"]
    address = f"tcp://{service['metadata']['name']}:{port}"
    scheduler = kubernetes["Deployment", "tharsis-scheduler"]
    assert scheduler["spec"]["template"]["metadata"]["labels"].items() >= service["spec"]["selector"].items()
    assert str(port) in pod(scheduler)["containers"][0]["command"]
    for resource in (kubernetes["Deployment", "tharsis-workers"], kubernetes["Job", "tharsis-reconstruct"]):
        assert address in pod(resource)["containers"][0]["command"]


def test_workers_and_job_see_the_same_files(kubernetes):
    seen = []
    for resource in (kubernetes["Deployment", "tharsis-workers"], kubernetes["Job", "tharsis-reconstruct"]):
        (volume,) = pod(resource)["volumes"]
        (mount,) = pod(resource)["containers"][0]["volumeMounts"]
        assert mount["name"] == volume["name"]
        seen.append((mount["mountPath"], volume["persistentVolumeClaim"]["claimName"]))
    assert seen[0] == seen[1]
    command = pod(kubernetes["Job", "tharsis-reconstruct"])["containers"][0]["command"]
    assert all(each.startswith(seen[0][0]) for each in command if each.startswith("/"))


def test_their_commands_exist(kubernetes):
    help_text = options_of_reconstruct()
    command = pod(kubernetes["Job", "tharsis-reconstruct"])["containers"][0]["command"]
    script = (EXAMPLES / "slurm.sh").read_text(encoding="utf-8")
    asked = [*command, *script.partition("tharsis reconstruct")[2].splitlines()[0].split()]
    assert command[:2] == ["tharsis", "reconstruct"]
    assert all(each in help_text for each in asked if each.startswith("--"))


def test_the_script_is_one_for_the_shell():
    subprocess.run(["sh", "-n", EXAMPLES / "slurm.sh"], check=True)
