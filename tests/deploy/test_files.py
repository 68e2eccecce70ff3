"""The deployment's files agree with each other and with the code. `make manifests` checks them against schemas."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from comfyui.settings import variables
from config import Settings
from tests.support.containers import DEPLOY, ROOT

K8S = DEPLOY / "k8s"
BIN = Path(sys.executable).parent


def _k8s(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((K8S / f"{name}.yaml").read_text())
    return loaded


def _container() -> dict[str, Any]:
    (container,) = _k8s("deployment")["spec"]["template"]["spec"]["containers"]
    found: dict[str, Any] = container
    return found


def _variables(container: dict[str, Any]) -> dict[str, str]:
    return {item["name"]: item.get("value", "") for item in container["env"]}


@pytest.mark.parametrize("script", sorted(path.relative_to(ROOT).as_posix() for path in DEPLOY.rglob("*.sh")))
def test_shell_scripts_pass_shellcheck(script: str) -> None:
    found = subprocess.run([BIN / "shellcheck", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout
    assert (ROOT / script).stat().st_mode & 0o111, "it is executable"
    assert "set -euo pipefail" in (ROOT / script).read_text()


def test_the_dockerfile_passes_hadolint() -> None:
    found = subprocess.run(
        [BIN / "hadolint", "deploy/Dockerfile"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout


def test_all_files_that_the_image_copies_exist_and_every_role_has_requirements() -> None:
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    for sources in re.findall(r"^COPY (?!--)(.*) \S+$", text, re.MULTILINE):
        for source in sources.split():
            assert "$" in source or (ROOT / source).exists(), source
    roles = re.search(r'^ARG ROLES="(.*)"', text, re.MULTILINE)
    assert roles is not None
    for role in roles[1].split():
        assert (ROOT / "requirements" / f"{role}.txt").is_file()
        if role != "gateway":
            assert (ROOT / "comfyui" / "workers" / f"{role}_worker.py").is_file()


def test_each_image_compiles_our_modules() -> None:
    stages = re.split(r"^FROM ", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE)
    with_code = [stage.partition("COPY comfyui ")[2] for stage in stages if "COPY comfyui " in stage]
    assert len(with_code) == 2
    for after in with_code:
        assert "\nRUN /opt/venv/gateway/bin/python -m compileall -q /opt/gateway\n" in after


def test_every_package_of_the_image_is_pinned_by_hash() -> None:
    for name in ("image", "gateway", "runpod", "littlehorse", "postgres"):
        lines = (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()
        for number, line in enumerate(lines):
            if re.match(r"^[a-z0-9].*==", line):
                assert lines[number + 1].strip().startswith("--hash="), f"{name}: {line}"


def test_each_probe_asks_the_health_path_made_for_it() -> None:
    container = _container()
    paths = {name: container[name]["httpGet"]["path"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert paths == {
        "startupProbe": "/health/live",
        "livenessProbe": "/health/live",
        "readinessProbe": "/health/ready",
    }


def test_a_pod_has_enough_time_to_drain() -> None:
    pod = _k8s("deployment")["spec"]["template"]["spec"]
    drain = int(_variables(_container())["SHUTDOWN_GRACE_SECONDS"])
    pre_stop = int(_container()["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] >= pre_stop + drain + 15 + 20


def test_compose_gives_enough_time_to_drain() -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    for name, margin in {"gateway": 35, "many": 15}.items():
        grace = int(services[name]["stop_grace_period"].removesuffix("s"))
        assert grace >= int(services[name]["environment"]["SHUTDOWN_GRACE_SECONDS"]) + margin


def test_a_pod_runs_with_the_least_privileges() -> None:
    pod = _k8s("deployment")["spec"]["template"]["spec"]
    security = _container()["securityContext"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert security["readOnlyRootFilesystem"] is True
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert _container()["resources"]["limits"]["nvidia.com/gpu"] == 1
    user = re.search(r"^USER (\d+):(\d+)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert user is not None
    assert [pod["securityContext"][key] for key in ("runAsUser", "runAsGroup")] == [int(user[1]), int(user[2])]


def test_api_keys_come_from_a_secret() -> None:
    (keys,) = [item for item in _container()["env"] if item["name"] == "API_KEYS"]
    assert keys["valueFrom"]["secretKeyRef"] == {"name": "comfyui-gateway", "key": "api-keys"}
    assert set(_k8s("secret.example")["stringData"]) == {"api-keys", "metrics-api-key"}


def test_all_manifests_select_the_same_pods() -> None:
    labels = _k8s("deployment")["spec"]["template"]["metadata"]["labels"]
    selectors = [
        _k8s("deployment")["spec"]["selector"]["matchLabels"],
        _k8s("service")["spec"]["selector"],
        _k8s("poddisruptionbudget")["spec"]["selector"]["matchLabels"],
        _k8s("networkpolicy")["spec"]["podSelector"]["matchLabels"],
        _k8s("podmonitor")["spec"]["selector"]["matchLabels"],
    ]
    assert selectors == [labels] * len(selectors)
    assert _k8s("scaledobject")["spec"]["scaleTargetRef"]["name"] == _k8s("deployment")["metadata"]["name"]


def test_every_metric_in_alerts_and_scaling_exists() -> None:
    from comfyui.metrics import Metrics

    families = {family.name: family.type for family in Metrics().registry.collect()}
    exposed = {name + ("_total" if kind == "counter" else "") for name, kind in families.items()}
    for file in (K8S / "scaledobject.yaml", DEPLOY / "alerts.yml"):
        asked = set(re.findall(r"comfyui_gateway_[a-z_]+", file.read_text()))
        assert asked
        assert asked <= exposed, file.name


@pytest.mark.parametrize("name", ["gateway", "many"])
def test_compose_sets_only_settings_that_exist(name: str) -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    ours = {"COMFYUI_ARGS", "MODEL_MANIFEST", "CUSTOM_NODES", "WORKER"}
    known = variables(Settings).keys() | ours
    assert set(services[name]["environment"]) <= known


def test_every_setting_of_the_entry_point_is_documented() -> None:
    used = set(re.findall(r"\$\{([A-Z][A-Z_]+):-", (DEPLOY / "entrypoint.sh").read_text()))
    used |= set(re.findall(r'environ\.get\("([A-Z_]+)"', (DEPLOY / "supervisor_events.py").read_text()))
    text = (DEPLOY / "README.md").read_text()
    missing = {name for name in used if f"`{name}`" not in text}
    assert not missing
