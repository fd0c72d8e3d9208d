"""The files of cluster/: each is what its tool takes, and safe as it is."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from unseen_ray.config.run import PruneConfig

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "cluster"
KUBERAY = Path(os.environ.get("UNSEEN_KUBERAY") or ROOT.parent / "shared" / "kuberay")
RAY_UP = sorted(CLUSTER.glob("ray-up-*.yaml"))
KINDS = {"RayCluster": "ray.io_v1_rayclusters", "RayJob": "ray.io_v1_rayjobs"}
OVERLAYS = [CLUSTER / "overlays" / name for name in ("own", "kueue")]
KUBE = [CLUSTER / "kuberay-raycluster.yaml", CLUSTER / "kuberay-rayjob.yaml"]
each_kube = pytest.mark.parametrize("path", KUBE, ids=lambda path: path.stem)
each_ray_up = pytest.mark.parametrize("path", RAY_UP, ids=lambda path: path.stem)


def closed(schema: Any) -> Any:
    """A custom resource's schema for jsonschema, in which a misspelt key is an error."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: closed(value) for key, value in schema.items()}
    if found.pop("x-kubernetes-int-or-string", False):
        found["type"] = ["integer", "string"]
        found.pop("anyOf", None)
    if isinstance(found.get("properties"), dict) and not found.get("x-kubernetes-preserve-unknown-fields"):
        found.setdefault("additionalProperties", False)
    return found


def problems_of(manifest: dict[str, Any]) -> list[str]:
    """What KubeRay 1.7.0 would refuse."""
    path = KUBERAY / f"{KINDS[manifest['kind']]}.openapi.json"
    if not path.exists():
        pytest.skip(f"needs KubeRay's schemas in {KUBERAY}: set UNSEEN_KUBERAY to a folder with {path.name}")
    validator = jsonschema.Draft202012Validator(closed(json.loads(path.read_text())))
    found = [
        f"{'/'.join(map(str, error.path))}: {error.message[:200]}"
        for error in validator.iter_errors(manifest)
        if list(error.path)[:1] != ["metadata"]
    ]
    return [problem for problem in found if "'apiVersion', 'kind'" not in problem]


def cluster_of(manifest: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = manifest["spec"]
    return spec.get("rayClusterSpec", spec)


def pods_of(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    spec = cluster_of(manifest)
    return [group["template"]["spec"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]


@each_kube
def test_kuberay_takes_it_and_would_not_take_a_misspelt_key(path: Path) -> None:
    manifest = yaml.safe_load(path.read_text())
    assert problems_of(manifest) == []
    misspelt = copy.deepcopy(manifest)
    cluster_of(misspelt)["workerGroupSpecs"][0]["maxReplcas"] = 3
    assert any("maxReplcas" in problem for problem in problems_of(misspelt))


@each_kube
def test_on_kubernetes_nothing_is_open_and_nothing_is_root(path: Path) -> None:
    manifest = yaml.safe_load(path.read_text())
    spec = cluster_of(manifest)
    assert spec["authOptions"] == {"mode": "token"}
    assert (
        spec["headGroupSpec"]["resources"] == {"CPU": "0"} and "num-cpus" not in spec["headGroupSpec"]["rayStartParams"]
    )
    assert spec["autoscalerOptions"]["version"] == "v2"  # which alone knows of a group's idleTimeoutSeconds
    markets = [group["labels"]["ray.io/market-type"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]
    assert markets == ["on-demand", "spot"]
    assert [group["minReplicas"] for group in spec["workerGroupSpecs"]] == [0]
    assert spec["enableInTreeAutoscaling"]
    for pod in pods_of(manifest):
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 1000
        (container,) = pod["containers"]
        assert not container["securityContext"]["allowPrivilegeEscalation"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounted["shared"] == "/shared" and mounted["shm"] == "/dev/shm"
        assert mounted.keys() == {volume["name"] for volume in pod["volumes"]}
    gpus = [pod["containers"][0]["resources"]["limits"].get("nvidia.com/gpu") for pod in pods_of(manifest)]
    assert gpus == [None, "1"]


def test_both_kuberay_files_have_one_cluster() -> None:
    one, other = (cluster_of(yaml.safe_load(path.read_text())) for path in KUBE)
    head = other["headGroupSpec"]["template"]["spec"]
    assert head["volumes"].pop(0) == {"name": "run", "configMap": {"name": "unseen-ray-run"}}
    assert head["containers"][0]["volumeMounts"].pop(0)["name"] == "run"
    assert one == other


def test_a_rayjob_ends_by_itself_whatever_becomes_of_it() -> None:
    """KubeRay refuses deletion rules beside the older fields, and DeleteWorkers where it scales by itself: no schema says so."""
    spec = yaml.safe_load((CLUSTER / "kuberay-rayjob.yaml").read_text())["spec"]
    rules = spec["deletionStrategy"]["deletionRules"]
    assert {(*rule["condition"].values(),)[0] for rule in rules} == {"SUCCEEDED", "FAILED", "Failed"}
    assert {rule["policy"] for rule in rules} == {"DeleteCluster"}
    assert not {"shutdownAfterJobFinishes", "ttlSecondsAfterFinished"} & spec.keys()
    assert 0 < spec["preRunningDeadlineSeconds"] < spec["activeDeadlineSeconds"]


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.name)
def test_an_overlay_gives_what_kuberay_takes(overlay: Path) -> None:
    if not shutil.which("kubectl"):
        pytest.skip("needs kubectl")
    line = ["kubectl", "kustomize", "--load-restrictor", "LoadRestrictionsNone", str(overlay)]
    built = subprocess.run(line, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    made = {each["kind"]: each for each in yaml.safe_load_all(built.stdout)}
    assert made.keys() == {"ConfigMap", "PersistentVolumeClaim", "NetworkPolicy", "RayJob"}
    assert {each["metadata"]["namespace"] for each in made.values()} == {"unseen-ray"}
    job = made["RayJob"]
    assert problems_of(job) == []
    assert {pod["containers"][0]["image"] for pod in pods_of(job)} == {"REGISTRY/unseen-ray:TAG"}
    assert made["PersistentVolumeClaim"]["spec"]["storageClassName"] == "STORAGE_CLASS"
    config = yaml.safe_load(made["ConfigMap"]["data"]["run.yaml"])
    assert PruneConfig(**config).out == "/shared/runs/mine"


def test_kueue_gets_a_cluster_that_it_can_admit_at_once() -> None:
    """Kueue refuses a RayJob that scales by itself, or that keeps its cluster."""
    overlay = yaml.safe_load((CLUSTER / "overlays" / "kueue" / "kustomization.yaml").read_text())
    changes = {each["path"]: each.get("value") for each in yaml.safe_load(overlay["patches"][0]["patch"])}
    assert changes["/spec/rayClusterSpec/enableInTreeAutoscaling"] is None
    assert changes["/spec/shutdownAfterJobFinishes"] is True and changes["/spec/deletionStrategy"] is None
    sizes = {changes[f"/spec/rayClusterSpec/workerGroupSpecs/0/{name}eplicas"] for name in ("r", "minR", "maxR")}
    assert len(sizes) == 1
    assert changes["/metadata/labels"].keys() == {"kueue.x-k8s.io/queue-name"}


def test_the_network_lets_in_what_kuberay_needs_and_nobody_else() -> None:
    claim, policy = yaml.safe_load_all((CLUSTER / "kuberay-shared.yaml").read_text())
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for path in KUBE:
        (volume,) = [v for v in pods_of(yaml.safe_load(path.read_text()))[0]["volumes"] if v["name"] == "shared"]
        assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        for group in ("headGroupSpec", "workerGroupSpecs"):
            templates = cluster_of(yaml.safe_load(path.read_text()))[group]
            for template in templates if isinstance(templates, list) else [templates]:
                assert template["template"]["metadata"]["labels"] == policy["spec"]["podSelector"]["matchLabels"]
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    (rule,) = policy["spec"]["ingress"]
    nodes, operator, submitter = (peer["podSelector"]["matchLabels"] for peer in rule["from"])
    assert nodes == policy["spec"]["podSelector"]["matchLabels"]
    assert operator == {"app.kubernetes.io/name": "kuberay-operator"}
    job = yaml.safe_load((CLUSTER / "kuberay-rayjob.yaml").read_text())
    assert submitter == {"batch.kubernetes.io/job-name": job["metadata"]["name"]}


def test_there_are_files_for_ray_up() -> None:
    assert [path.stem for path in RAY_UP] == ["ray-up-aws", "ray-up-gcp", "ray-up-onprem"]


@each_ray_up
def test_ray_up_takes_it_and_would_not_take_a_misspelt_key(path: Path) -> None:
    line = (
        "import sys, yaml; from ray.autoscaler._private.util import prepare_config, validate_config; "
        "validate_config(prepare_config(yaml.safe_load(sys.stdin)))"
    )

    def taken(text: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", line], input=text, capture_output=True, text=True, check=False)

    assert taken(path.read_text()).returncode == 0, taken(path.read_text()).stderr[-800:]
    assert taken(path.read_text() + "\nmax_wrokers: 3\n").returncode != 0


@each_ray_up
def test_ray_up_starts_with_a_token_and_a_dashboard_on_loopback(path: Path) -> None:
    asked = yaml.safe_load(path.read_text())
    for commands in (asked["head_start_ray_commands"], asked["worker_start_ray_commands"]):
        started = [command for command in commands if "ray start" in command]
        assert len(started) == 1 and "RAY_AUTH_MODE=token ray start" in started[0]
    assert "--dashboard-host=127.0.0.1" in asked["head_start_ray_commands"][-1]
    assert asked["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert "chmod 600 ~/.ray/auth_token" in asked["setup_commands"]
    types = asked.get("available_node_types")
    if types:
        assert asked["docker"]["image"] == "REGISTRY/unseen-ray:latest"
        assert all(
            "--user" in command for command in asked["head_setup_commands"]
        )  # the image's own Python, not as root
        assert types["head"]["resources"]["CPU"] == 0
        assert types["gpu"]["min_workers"] == 0
        assert "spot" in json.dumps(types["gpu"]).lower() and "spot" not in json.dumps(types["head"]).lower()


def test_the_compose_file_publishes_the_dashboard_on_loopback_alone() -> None:
    asked = yaml.safe_load((CLUSTER / "compose.yaml").read_text())
    assert asked.keys() == {"name", "x-node", "services", "secrets", "volumes"}
    services = asked["services"]
    assert services["head"]["ports"] == ["127.0.0.1:8265:8265"]
    assert services["worker"]["deploy"] == {"replicas": 2}
    for name in ("head", "worker"):
        assert services[name]["environment"]["RAY_AUTH_MODE"] == "token"
        assert services[name]["secrets"] == ["token"]
        assert services[name]["volumes"] == ["shared:/shared"]
        assert not {"privileged", "network_mode", "user"} & services[name].keys()


def test_docker_compose_takes_the_compose_file(tmp_path: Path) -> None:
    if not shutil.which("docker") or subprocess.run(["docker", "compose", "version"], capture_output=True).returncode:
        pytest.skip("needs docker compose")
    folder = tmp_path / "cluster"
    shutil.copytree(CLUSTER, folder)
    (folder / "token").touch()
    line = ["docker", "compose", "-f", str(folder / "compose.yaml"), "config", "--quiet"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_slurm_array_does_a_line_of_points_each(tmp_path: Path) -> None:
    """With stand-ins for the programs of Slurm, and for those that it starts."""
    for name, does in {"scontrol": "echo here", "srun": ":", "ray": ":", "unseen-ray": 'printf "%s\\n" "$@"'}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "points.txt").write_text("--folds 4\n--folds 8 --score '{use: el2n}'\n")
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "71"}
    env |= {"SLURM_JOB_NODELIST": "here", "POINTS": str(tmp_path / "points.txt")}
    line = ["bash", str(CLUSTER / "slurm.sh"), "run.yaml", "--out", "/shared/points"]
    done = subprocess.run(line, env={**env, "SLURM_ARRAY_TASK_ID": "2"}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    given = ["prune", *line[2:], "--folds", "8", "--score", "{use: el2n}", "--out", "/shared/points/2"]
    assert done.stdout.splitlines() == [*given, "--address", "here:20071"]
    refused = subprocess.run(line[:3], env={**env, "SLURM_ARRAY_TASK_ID": "2"}, capture_output=True, text=True)
    assert refused.returncode != 0 and "POINTS needs --out FOLDER" in refused.stderr
    assert not list(tmp_path.glob(".unseen-ray-*"))


def test_shellcheck_has_nothing_to_say_of_the_slurm_script() -> None:
    done = subprocess.run([tool("shellcheck"), str(CLUSTER / "slurm.sh")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_hadolint_has_nothing_to_say_of_the_dockerfile() -> None:
    done = subprocess.run([tool("hadolint"), str(CLUSTER / "Dockerfile")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def tool(name: str) -> str:
    """A program of this environment."""
    path = Path(sys.executable).parent / name
    assert path.exists(), f"{name} is a development dependency: make install"
    return str(path)
