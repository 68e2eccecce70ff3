"""deploy/runpod: each script as its user runs it, on real sockets and processes; Docker and RunPod are fakes."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.support.model_store import CONTENT, Store, serving

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "deploy" / "runpod"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


download_models = script("download_models")


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={"PATH": os.environ["PATH"], "HOME": str(cwd), **environment},
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )


def program(folder: Path, name: str, text: str) -> str:
    """Writes a program of this name and returns a PATH on which it comes first."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!{sys.executable}\n{text}", encoding="utf-8")
    path.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


# Downloading models


def download(
    store: Store, folder: Path, *, retries: int = 2, environ: dict[str, str] | None = None, **fields: Any
) -> None:
    entry = {"path": "loras/a.safetensors", "url": f"{store.url}/a", **fields}
    [model] = download_models.read_manifest(json.dumps({"models": [entry]}))
    downloader = download_models.Downloader(folder, environ or {}, retries=retries, backoff_s=0)
    if downloader.missing(model):
        downloader.download(model)


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_models_are_downloaded_once_and_a_dry_run_downloads_nothing(model_store: Store, tmp_path: Path) -> None:
    models = [{"path": f"loras/{n}.safetensors", "url": f"{model_store.url}/{n}", "sha256": SHA256} for n in range(6)]
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps({"models": models}), encoding="utf-8")
    command = (sys.executable, SCRIPTS / "download_models.py", manifest, "--models-dir", tmp_path / "models")
    dry = run(*command, "--dry-run")
    assert (dry.returncode, model_store.requests) == (0, [])
    assert "loras/0.safetensors: missing" in dry.stdout
    done = run(*command)
    assert done.returncode == 0, done.stderr
    assert files_in(tmp_path / "models") == [f"loras/{n}.safetensors" for n in range(6)]
    assert len(model_store.requests) == 6
    again = run(*command)
    assert "loras/5.safetensors: there" in again.stdout
    assert len(model_store.requests) == 6


def test_an_interrupted_download_resumes_where_it_stopped(model_store: Store, tmp_path: Path) -> None:
    model_store.break_after = [300_000, 300_000]
    download(model_store, tmp_path, sha256=SHA256)
    assert (tmp_path / "loras/a.safetensors").read_bytes() == CONTENT
    assert [headers.get("Range") for _, headers in model_store.requests] == [None, "bytes=300000-", "bytes=600000-"]
    assert files_in(tmp_path) == ["loras/a.safetensors"]


def test_an_interrupted_download_resumes_in_the_next_run(model_store: Store, tmp_path: Path) -> None:
    model_store.break_after = [400_000]
    with pytest.raises(download_models.DownloadError, match="the download ended"):
        download(model_store, tmp_path, retries=0)
    download(model_store, tmp_path)
    assert (tmp_path / "loras/a.safetensors").read_bytes() == CONTENT
    assert model_store.requests[-1][1]["Range"] == "bytes=400000-"


def test_a_file_that_changed_on_the_server_is_not_mixed_with_its_old_part(model_store: Store, tmp_path: Path) -> None:
    model_store.break_after = [400_000]
    with pytest.raises(download_models.DownloadError):
        download(model_store, tmp_path, retries=0)
    model_store.content, model_store.etag = CONTENT[::-1], '"two"'
    download(model_store, tmp_path)
    assert (tmp_path / "loras/a.safetensors").read_bytes() == CONTENT[::-1]


def test_a_server_without_ranges_is_asked_for_the_whole_file_again(model_store: Store, tmp_path: Path) -> None:
    model_store.ranges = False
    model_store.break_after = [400_000]
    download(model_store, tmp_path, sha256=SHA256)
    assert (tmp_path / "loras/a.safetensors").read_bytes() == CONTENT


def test_a_file_with_a_wrong_checksum_is_discarded_and_not_downloaded_again(model_store: Store, tmp_path: Path) -> None:
    with pytest.raises(download_models.DownloadError, match="SHA-256"):
        download(model_store, tmp_path, sha256="0" * 64)
    assert not (tmp_path / "loras/a.safetensors").exists()
    assert len(model_store.requests) == 1


def test_a_damaged_partial_file_is_discarded_and_downloaded_again(model_store: Store, tmp_path: Path) -> None:
    (tmp_path / "loras").mkdir()
    (tmp_path / "loras/.a.safetensors.part").write_bytes(b"nonsense")
    download(model_store, tmp_path, sha256=SHA256)
    assert (tmp_path / "loras/a.safetensors").read_bytes() == CONTENT


def test_only_temporary_download_errors_are_retried(model_store: Store, tmp_path: Path) -> None:
    model_store.statuses = [503, 500]
    download(model_store, tmp_path)
    model_store.statuses = [404]
    with pytest.raises(download_models.DownloadError, match="HTTP 404"):
        download(model_store, tmp_path, path="loras/b.safetensors")
    assert len(model_store.requests) == 4


def test_a_file_of_another_size_is_replaced(model_store: Store, tmp_path: Path) -> None:
    (tmp_path / "loras").mkdir()
    (tmp_path / "loras/a.safetensors").write_bytes(b"half a file")
    download(model_store, tmp_path, size=len(CONTENT))
    assert (tmp_path / "loras/a.safetensors").read_bytes() == CONTENT


def test_a_token_goes_to_its_server_and_not_to_a_redirect_target(model_store: Store, tmp_path: Path) -> None:
    elsewhere = Store()
    with serving(elsewhere) as url:
        model_store.redirect_to = f"{url}/signed"
        download(model_store, tmp_path, token_env="TOKEN", environ={"TOKEN": "secret"})
    assert model_store.requests[0][1]["Authorization"] == "Bearer secret"
    assert "Authorization" not in elsewhere.requests[0][1]
    with pytest.raises(download_models.DownloadError, match="TOKEN is not set"):
        download(model_store, tmp_path, path="loras/b.safetensors", token_env="TOKEN")


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ([{"path": "../x/y", "url": "http://h/x"}], "below the models folder"),
        ([{"path": "/etc/passwd", "url": "http://h/x"}], "below the models folder"),
        ([{"path": "x", "url": "http://h/x"}], "folder/name"),
        ([{"path": "x/y", "url": "file:///etc/passwd"}], "url must be"),
        ([{"path": "x/y", "url": "http://h/x", "sha256": "abc"}], "64 hexadecimal"),
        ([{"path": "x/y", "url": "http://h/x", "sha265": "abc"}], "no field sha265"),
        ([{"path": "x/y", "url": "http://h/x"}] * 2, "listed twice"),
        ([{"path": "x/y"}], "it must be"),
    ],
)
def test_an_invalid_manifest_is_refused_with_the_reason(models: list[dict[str, str]], message: str) -> None:
    with pytest.raises(download_models.ManifestError, match=message):
        download_models.read_manifest(json.dumps({"models": models}))


def test_the_example_manifest_is_valid() -> None:
    assert len(download_models.read_manifest((SCRIPTS / "models.manifest.example.json").read_text())) == 2


def test_s3_links_are_signed_as_by_amazons_library() -> None:
    session = pytest.importorskip("botocore.session").get_session()
    config = pytest.importorskip("botocore.config").Config(signature_version="s3v4", s3={"addressing_style": "path"})
    session.set_credentials("AKIAEXAMPLE", "secret/key", "a+token=")
    client = session.create_client("s3", "eu-west-1", endpoint_url="https://s3.example.com:9000", config=config)
    key = "loras/our style+1.safetensors"
    expected = client.generate_presigned_url("get_object", Params={"Bucket": "models", "Key": key}, ExpiresIn=3600)
    stamp = parse_qs(urlsplit(expected).query)["X-Amz-Date"][0]
    environ = {
        "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "secret/key",
        "AWS_SESSION_TOKEN": "a+token=",
        "AWS_REGION": "eu-west-1",
        "AWS_ENDPOINT_URL": "https://s3.example.com:9000",
    }
    now = datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    ours = download_models.presigned_s3_url(f"s3://models/{key}", environ, now=now)
    assert parse_qs(urlsplit(ours).query) == parse_qs(urlsplit(expected).query)
    assert urlsplit(ours)[:3] == urlsplit(expected)[:3]


def test_a_model_in_an_s3_store_is_downloaded(model_store: Store, tmp_path: Path) -> None:
    environ = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_ENDPOINT_URL": model_store.url}
    download(model_store, tmp_path, url="s3://bucket/dir/a", environ=environ)
    assert (tmp_path / "loras/a.safetensors").read_bytes() == CONTENT
    assert model_store.requests[0][0].startswith("/bucket/dir/a?X-Amz-Algorithm=AWS4-HMAC-SHA256&")


# Paths


def test_extra_model_paths_name_each_folder_once() -> None:
    yaml = pytest.importorskip("yaml")
    [section] = yaml.safe_load((SCRIPTS / "extra_model_paths.yaml").read_text()).values()
    assert section.pop("base_path") == "/runpod-volume/models"
    folders = [line for value in section.values() for line in value.split()]
    assert len(folders) == len(set(folders))
    assert {"diffusion_models", "unet", "text_encoders", "clip", "audio_encoders", "model_patches"} <= set(folders)


# Building and pushing


def test_build_and_push_print_their_command_in_a_dry_run_and_otherwise_run_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    path = program(
        tmp_path / "bin", "docker", f"import sys; open({str(log)!r}, 'a').write(' '.join(sys.argv[1:]) + '\\n')"
    )
    dry = run(SCRIPTS / "build.sh", "--tag", "v1", "--registry", "r.example/me", "--no-cache", "--dry-run", PATH=path)
    assert dry.returncode == 0
    assert "--tag r.example/me/comfyui-gateway-runpod:v1" in dry.stdout
    assert "--no-cache" in dry.stdout
    assert not log.exists()
    assert run(SCRIPTS / "push.sh", "--registry", "r.example/me", "--tag", "v1", "--dry-run", PATH=path).returncode == 0
    assert not log.exists()

    assert run(SCRIPTS / "build.sh", "--image", "mine", "--tag", "v2", PATH=path).returncode == 0
    assert f"--file {ROOT}/deploy/Dockerfile --tag mine:v2" in log.read_text()
    assert (
        run(SCRIPTS / "push.sh", "--registry", "r.example/me", "--image", "mine", "--tag", "v2", PATH=path).returncode
        == 0
    )
    assert log.read_text().splitlines()[-1] == "push r.example/me/mine:v2"


@pytest.mark.parametrize(("name", "arguments"), [("build.sh", ["--nope"]), ("build.sh", ["--tag"]), ("push.sh", [])])
def test_build_and_push_refuse_invalid_arguments(name: str, arguments: list[str]) -> None:
    refused = run(SCRIPTS / name, *arguments)
    assert refused.returncode == 64
    assert refused.stderr.startswith(name)


# Sending models to a volume


def test_models_are_sent_as_one_archive_that_unpacks_itself_on_the_volume(tmp_path: Path) -> None:
    local, volume = tmp_path / "my models", tmp_path / "the volume"
    for name in ("checkpoints/a b.safetensors", "loras/deep/c.safetensors", "loras/.hidden.part"):
        (local / name).parent.mkdir(parents=True, exist_ok=True)
        (local / name).write_bytes(name.encode() * 1000)
    volume.mkdir()
    (volume / "models/loras").mkdir(parents=True)
    (volume / "models/loras/old.safetensors").write_bytes(b"stays")
    sender = f"import shutil, sys; assert sys.argv[1] == 'send'; shutil.copy(sys.argv[2], {str(volume)!r})"
    path = program(tmp_path / "bin", "runpodctl", sender)
    sync = (sys.executable, SCRIPTS / "sync_models.py", local, volume, "--archive-dir", tmp_path)
    assert "deep/c.safetensors" in run(*sync, "--dry-run", PATH=path).stdout
    sent = run(*sync, PATH=path)
    assert sent.returncode == 0, sent.stderr
    assert list(tmp_path.glob("*.tar")) == []
    [archive] = volume.glob("*.tar")
    [command] = [line.strip() for line in sent.stdout.splitlines() if line.strip().startswith("tar ")]
    assert str(archive) in command.replace("'", "")

    done = run("bash", "-c", command)
    assert done.returncode == 0, done.stderr
    assert files_in(volume) == [
        "models/checkpoints/a b.safetensors",
        "models/loras/deep/c.safetensors",
        "models/loras/old.safetensors",
    ]
    assert list(volume.iterdir()) == [volume / "models"]


def test_models_may_have_any_name(tmp_path: Path) -> None:
    """Regression: a line break in a name broke the list of checksums, and with it the whole archive."""
    local, volume = tmp_path / "models", tmp_path / "volume"
    names = [
        "loras/two\nlines.safetensors",
        "loras/back\\slash.pt",
        "loras/tab\tquote'\".pt",
        "-dash/- -.pt",
        "a\n/end.pt",
    ]
    for name in names:
        (local / name).parent.mkdir(parents=True, exist_ok=True)
        (local / name).write_bytes(name.encode())
    volume.mkdir()
    sync = (sys.executable, SCRIPTS / "sync_models.py", local, volume, "--archive-dir", volume, "--no-send")
    made = run(*sync)
    assert made.returncode == 0, made.stderr
    [archive] = volume.glob("*.tar")
    done = run("bash", "-o", "pipefail", "-c", f"tar --extract --to-stdout --file {archive} extract_models.sh | bash")
    assert done.returncode == 0, done.stderr
    for name in names:
        assert (volume / "models" / name).read_bytes() == name.encode()


def test_flags_override_the_environment_which_overrides_the_defaults_file(tmp_path: Path) -> None:
    defaults = tmp_path / "defaults.env"
    defaults.write_text(
        "# ours\nREGISTRY=r.example/file\nIMAGE=from-file\nTAG=v1\nRUNPOD_ENDPOINT_ID=endpoint-of-the-file\n"
    )
    settings: Any = {"RUNPOD_DEFAULTS": str(defaults)}
    said = run(SCRIPTS / "build.sh", "--dry-run", **settings).stdout
    assert "--tag r.example/file/from-file:v1 " in said
    said = run(SCRIPTS / "build.sh", "--dry-run", IMAGE="from-environment", **settings).stdout
    assert "--tag r.example/file/from-environment:v1 " in said
    said = run(SCRIPTS / "build.sh", "--dry-run", "--image", "flag", "--tag", "v2", IMAGE="other", **settings).stdout
    assert "--tag r.example/file/flag:v2 " in said
    said = run(SCRIPTS / "push.sh", "--dry-run", **settings).stdout
    assert "push r.example/file/from-file:v1" in said
    submit = (sys.executable, SCRIPTS / "submit.py", "--help")
    assert "endpoint-of-the-file" in run(*submit, **settings).stdout
    assert "other-endpoint" in run(*submit, RUNPOD_ENDPOINT_ID="other-endpoint", **settings).stdout


def test_a_damaged_archive_extracts_nothing(tmp_path: Path) -> None:
    local, volume = tmp_path / "models", tmp_path / "volume"
    (local / "loras").mkdir(parents=True)
    (local / "loras/a.safetensors").write_bytes(b"a" * 100_000)
    volume.mkdir()
    sync = (sys.executable, SCRIPTS / "sync_models.py", local, volume, "--archive-dir", volume, "--no-send")
    assert run(*sync).returncode == 0
    [archive] = volume.glob("*.tar")
    archive.write_bytes(archive.read_bytes().replace(b"a" * 1000, b"b" * 1000))
    command = f"tar --extract --to-stdout --file {archive} extract_models.sh | bash"
    failed = run("bash", "-o", "pipefail", "-c", command)
    assert failed.returncode != 0
    assert "loras/a.safetensors: FAILED" in failed.stdout + failed.stderr
    assert files_in(volume) == [archive.name]


def test_a_relative_volume_or_an_empty_folder_is_refused(tmp_path: Path) -> None:
    sync = (sys.executable, SCRIPTS / "sync_models.py", tmp_path)
    assert "absolute" in run(*sync, "workspace").stderr
    assert "no models" in run(*sync, "/workspace").stderr


# Submitting


class FakeRunPod:
    """RunPod's API for one endpoint; a job goes through the given states."""

    def __init__(self, *states: dict[str, Any]) -> None:
        self.states = list(states)
        self.body: dict[str, Any] = {}
        self.calls: list[str] = []


@contextmanager
def runpod_api(api: FakeRunPod) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.path == "/v2/endpoint/run":
                api.body = json.loads(body)
            self._answer({"id": "job-1", "status": "IN_QUEUE"})

        def do_GET(self) -> None:
            self._answer(api.states.pop(0) if len(api.states) > 1 else api.states[0])

        def _answer(self, answer: dict[str, Any]) -> None:
            api.calls.append(f"{self.command} {self.path}")
            allowed = self.headers["Authorization"] == "Bearer the-key"
            status = answer.pop("http", 200) if allowed else 401
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/v2"
        finally:
            server.shutdown()
            thread.join()


def submit(
    api: FakeRunPod, folder: Path, *arguments: str | Path, key: str = "the-key"
) -> subprocess.CompletedProcess[str]:
    with runpod_api(api) as url:
        command = (
            sys.executable,
            SCRIPTS / "submit.py",
            ROOT / "examples/invert.json",
            "--output",
            folder,
            "--api",
            url,
        )
        return run(
            *(*command, "--interval", "0.01", "--no-open", *arguments),
            RUNPOD_API_KEY=key,
            RUNPOD_ENDPOINT_ID="endpoint",
        )


def test_a_workflow_is_submitted_with_its_inputs_and_the_results_are_saved(tmp_path: Path) -> None:
    (tmp_path / "in/masks").mkdir(parents=True)
    (tmp_path / "in/masks/m.png").write_bytes(b"mask")
    (tmp_path / "photo.png").write_bytes(b"photo")
    data = base64.b64encode(b"picture").decode()
    images = [
        {"filename": "a.png", "subfolder": "deep", "type": "base64", "data": data},
        {"filename": "../../evil.png", "subfolder": "../..", "type": "base64", "data": data},
        {"filename": "gone.png", "type": "error", "error": "it is gone"},
    ]
    api = FakeRunPod(
        {"status": "IN_QUEUE"},
        {"http": 502, "status": ""},
        {"status": "IN_PROGRESS", "output": {"fraction": 0.5, "message": "KSampler 10/20"}},
        {"status": "COMPLETED", "output": {"images": images}},
    )
    done = submit(api, tmp_path / "out", "--input", tmp_path / "in", "--input", tmp_path / "photo.png")
    assert done.returncode == 3, done.stderr
    assert api.body["input"]["reference_images"] == {
        "masks/m.png": base64.b64encode(b"mask").decode(),
        "photo.png": base64.b64encode(b"photo").decode(),
    }
    assert "IN_PROGRESS  50% KSampler 10/20" in done.stdout
    assert files_in(tmp_path / "out") == ["deep/a.png", "evil.png"]
    assert "gone.png: it is gone" in done.stderr
    assert not (tmp_path.parent / "evil.png").exists()


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ({"status": "FAILED", "error": "node 3: no"}, "FAILED: node 3: no"),
        ({"status": "CANCELLED"}, "CANCELLED: no reason was given"),
        ({"status": "TIMED_OUT"}, "TIMED_OUT: no reason was given"),
    ],
)
def test_a_run_that_ends_without_a_result_fails(tmp_path: Path, status: dict[str, Any], said: str) -> None:
    failed = submit(FakeRunPod(status), tmp_path)
    assert (failed.returncode, failed.stderr.strip()) == (1, said)


@pytest.mark.parametrize(
    ("images", "status", "said"),
    [
        ([{"filename": "a.png", "type": "error", "error": "the store is full"}], 1, "a.png: the store is full"),
        ([{"filename": "a.png", "type": "s3_url", "data": "http://127.0.0.1:9/a.png"}], 1, "a.png: <urlopen error"),
        ([{"filename": "a.png", "type": "base64", "data": "%%%"}], 1, "a.png: "),
        ([{"filename": "a.png", "type": "file"}], 1, "a.png: left on the worker"),
        ([], 0, ""),
    ],
)
def test_a_job_whose_files_are_all_unusable_is_a_failure(
    tmp_path: Path, images: list[dict[str, Any]], status: int, said: str
) -> None:
    """Regression: exit status 0 told scripts that the files exist, and a failed link ended in a traceback."""
    done = submit(FakeRunPod({"status": "COMPLETED", "output": {"images": images}}), tmp_path / "out")
    assert (done.returncode, said in done.stderr) == (status, True), done.stderr
    assert "Traceback" not in done.stderr


def test_an_error_in_a_completed_job_is_a_failure(tmp_path: Path) -> None:
    done = submit(FakeRunPod({"status": "COMPLETED", "output": {"error": "no GPU"}}), tmp_path)
    assert (done.returncode, done.stderr.strip()) == (1, "FAILED: no GPU")


def test_a_job_that_takes_too_long_is_cancelled(tmp_path: Path) -> None:
    api = FakeRunPod({"status": "IN_QUEUE"})
    failed = submit(api, tmp_path, "--timeout", "0.05")
    assert failed.returncode == 1
    assert "TIMED_OUT: the job did not finish within 0.05 s" in failed.stderr
    assert api.calls[-1] == "POST /v2/endpoint/cancel/job-1"


def test_a_submission_that_fails_says_why(tmp_path: Path) -> None:
    refused = submit(FakeRunPod({"status": "IN_QUEUE"}), tmp_path, key="wrong-key")
    assert (refused.returncode, "HTTP 401" in refused.stderr) == (2, True)
    assert "wrong-key" not in refused.stderr
    missing = submit(FakeRunPod({"status": "IN_QUEUE"}), tmp_path, "--input", tmp_path / "none.png")
    assert (missing.returncode, "No such file" in missing.stderr) == (2, True)


# The local trial


def test_the_local_trial_needs_neither_sdk_nor_account(tmp_path: Path) -> None:
    command = (sys.executable, SCRIPTS / "test_handler.py", "--engine", "--no-open", "--output", tmp_path / "out")
    done = run(*command, ROOT / "examples/invert.json")
    assert done.returncode == 0, done.stderr
    assert files_in(tmp_path / "out") == ["invert_00001_.png"]
    workflow = tmp_path / "bad.json"
    workflow.write_text('{"1": {"class_type": "Absent", "inputs": {}}}', encoding="utf-8")
    failed = run(*command, workflow)
    assert failed.returncode == 1
    assert "There is no node class Absent" in failed.stderr
