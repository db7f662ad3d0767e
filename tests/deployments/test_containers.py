"""The container and cluster files fit each other, the code and Prefect; no engine is needed."""

import json
import re
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from prefect.utilities.schema_tools.validation import is_valid_schema, validate
from prefect.utilities.templating import apply_values, find_placeholders

from deployments import init
from deployments.access import AUTH_STRING_VARIABLE
from deployments.cli.arguments import command_parser
from deployments.cli.up import SETTINGS
from flows.preset_files import Preset
from flows.run_config import compose
from model.network import flops
from model.training.config import OptimizerName
from tasks.runtime.grace_period import seconds_to_end

FOLDER = Path(__file__).resolve().parents[2] / "deployments"
COMPOSE = yaml.safe_load((FOLDER / "compose.yaml").read_text())
TEMPLATE = json.loads((FOLDER / "kubernetes/job-template.json").read_text())
SERVER = COMPOSE["services"]["server"]["environment"]
INIT = ["python", "-m", "deployments.init"]
DEFAULTS = {name: field["default"] for name, field in TEMPLATE["variables"]["properties"].items() if "default" in field}


def test_compose_names_only_what_it_defines():
    targets = set(re.findall(r"^FROM \S+ AS (\S+)", (FOLDER / "Dockerfile").read_text(), re.MULTILINE))
    for name, service in COMPOSE["services"].items():
        for other, condition in service.get("depends_on", {}).items():
            healthy = condition["condition"] == "service_healthy"
            assert not healthy or "healthcheck" in COMPOSE["services"][other], f"{name} waits for {other} for ever"
        assert {volume.split(":")[0] for volume in service.get("volumes", [])} <= set(COMPOSE["volumes"])
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), "beyond loopback"
    server, worker = (COMPOSE["services"][name] for name in ("server", "worker"))
    assert server["entrypoint"] == ["python", "-m", "deployments.server"]
    for service in (server, worker):  # nobody knows a string that compose does not give
        assert service["environment"][AUTH_STRING_VARIABLE].startswith(f"${{{AUTH_STRING_VARIABLE}:?")
    assert worker["build"]["target"].removeprefix("${TARGET:-").rstrip("}") in targets == {"base", "cpu", "cuda"}
    assert (FOLDER / worker["build"]["context"] / worker["build"]["dockerfile"]).is_file()
    assert command_parser().parse_args(worker["command"].split()).port == 4200
    assert worker["environment"]["DAILY_TRAIN_STORE"].startswith("s3://daily-train/")
    assert "-bucket=daily-train" in COMPOSE["services"]["store"]["command"]
    gpu = yaml.safe_load((FOLDER / "compose.gpu.yaml").read_text())
    assert set(gpu["services"]) <= set(COMPOSE["services"])


def test_no_service_of_compose_shares_the_network_of_one_that_may_be_started_again():
    services = COMPOSE["services"]
    shared = {service["network_mode"] for service in services.values() if "network_mode" in service}
    assert shared == {"service:loopback"}  # whoever shares it has no network once it was started again
    assert services["loopback"]["entrypoint"] == [*INIT, "sleep", "infinity"]
    assert [name for name, service in services.items() if "ports" in service] == ["loopback"]


def test_the_server_of_compose_has_the_settings_that_up_gives_its_own():
    image = re.findall(r"^ENV (.*)$", (FOLDER / "Dockerfile").read_text(), re.MULTILINE)
    given = {**dict(pair.split("=", 1) for line in image for pair in line.split()), **SERVER}
    wanted = {name: value for name, value in SETTINGS.items() if name.startswith("PREFECT_SERVER_")}
    assert {name: given.get(name) for name in wanted} == wanted


@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.glob("compose*.yaml")))
def test_compose_files_follow_the_compose_specification(name: str):
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(FOLDER / name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_dockerfile_passes_its_linter():
    linter = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([linter, FOLDER / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_no_secret_stands_in_a_container_file():
    for path in (*FOLDER.glob("compose*.yaml"), FOLDER / "Dockerfile", FOLDER / "kubernetes/job-template.json"):
        secret = r"(?:PASSWORD|SECRET_ACCESS_KEY|ACCESS_KEY_ID|AUTH_STRING)\s*[:=]\s*(\S+)"
        for value in re.findall(secret, path.read_text()):
            assert value.startswith(("${", "...")), f"{path.name}: {value}"
    assert "**/.env*" in (FOLDER.parent / ".dockerignore").read_text().split(), "compose reads secrets from such a file"


def test_every_placeholder_of_the_job_template_has_a_variable_and_every_variable_a_use():
    assert is_valid_schema(TEMPLATE["variables"]) is None
    placeholders = {found.name for found in find_placeholders(TEMPLATE["job_configuration"])}
    assert placeholders == set(TEMPLATE["variables"]["properties"])


@pytest.mark.parametrize("gpus", ["1", "8"])
def test_the_rendered_job_asks_for_the_gpus(gpus: str):
    values = {
        **DEFAULTS,
        "image": "daily-train:cuda",
        "command": "prefect flow-run execute",
        "gpus": gpus,
        "name": "run",
        "env": {},
        "labels": {},
    }
    validate(values, TEMPLATE["variables"])
    job = apply_values(TEMPLATE["job_configuration"], values)["job_manifest"]
    pod = job["spec"]["template"]["spec"]
    [container] = pod["containers"]
    container |= {"args": container["args"].split(), "env": []}  # as the worker does
    kubernetes_validate.validate(job, kubernetes_validate.latest_version(), strict=True)  # unknown fields are refused
    assert container["resources"]["limits"]["nvidia.com/gpu"] == gpus
    assert container["envFrom"] == [{"secretRef": {"name": "daily-train-store"}}]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert container["command"] + container["args"] == [*INIT, "prefect", "flow-run", "execute"]


def checkpoint_bytes(preset: Preset) -> int:
    """Of a preset without PSGD: weights; a moment of each hidden matrix under Muon, two of all else."""
    run = compose(preset, {})
    assert run.train.optimizer is not OptimizerName.PSGD
    model = run.model if run.model.vocab_size else run.model.with_vocabulary(run.tokenizer.vocab_size or 50_257, 0)
    counted = flops.parameters(model)
    hidden = counted["matrices"] + counted["experts"] if run.train.optimizer is OptimizerName.MUON else 0
    return 12 * counted["total"] - 4 * hidden


def test_a_container_is_given_the_time_that_the_largest_checkpoint_may_take():
    assert 13.5e9 < checkpoint_bytes(Preset.daily) < 14.5e9
    longest = max(seconds_to_end(checkpoint_bytes(preset)) for preset in Preset)
    assert longest < init.SECONDS
    assert COMPOSE["services"]["worker"]["stop_grace_period"] == f"{init.SECONDS // 60}m"
    pod = TEMPLATE["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == init.SECONDS
    entrypoints = re.findall(r"^ENTRYPOINT (.*)$", (FOLDER / "Dockerfile").read_text(), re.MULTILINE)
    assert [json.loads(entrypoint) for entrypoint in entrypoints] == [[*INIT, "daily-train"]] * 2
