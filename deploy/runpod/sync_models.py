#!/usr/bin/env python3
"""Copies a local folder of models to a RunPod volume: one archive, sent with runpodctl, with a script that unpacks it.

    python sync_models.py ~/models /workspace

LOCAL is the folder of models (with checkpoints/, loras/, …); VOLUME is the path at which the receiving pod mounts the
volume. The archive holds the models, their checksums, and the script that unpacks it on the pod. The script checks
every file before it puts any in place, then removes the archive. It replaces existing models.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

SCRIPT_NAME = "extract_models.sh"
CHECKSUMS_NAME = "checksums.sha256"

_SCRIPT = """#!/usr/bin/env bash
# Unpack {archive} into {target}; made by sync_models.py.
set -euo pipefail
archive={archive}
target={target}
staging={staging}

[[ -f "$archive" ]] || {{ echo "$archive is not there: receive it in {volume}" >&2; exit 66; }}
mkdir -p "$target"
free=$(df --output=avail --block-size=1 "$target" | tail -n 1)
if ((free < {size})); then
    echo "$target has $free bytes free, {size} are needed" >&2
    exit 73
fi
rm -rf "$staging"
mkdir -p "$staging"
trap 'rm -rf "$staging"' EXIT

echo "unpacking {count} files"
tar --extract --no-same-owner --file "$archive" --directory "$staging"
echo "checking them"
(cd "$staging" && sha256sum --check --quiet {checksums})
rm -f "$staging"/{checksums} "$staging"/{script}
echo "putting them in place"
(cd "$staging" && find . -type f -print0) | while IFS= read -r -d '' file; do
    # Not by dirname: what a command prints loses the line breaks at its end.
    mkdir -p "$target/${{file%/*}}"
    mv -f "$staging/$file" "$target/$file"
done
rm -f "$archive"
echo "done: {count} files in $target"
"""


def model_files(folder: Path) -> list[Path]:
    """The files to send, in order, without hidden and unfinished ones."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def extract_script(archive: str, volume: Path, *, size: int, count: int) -> str:
    """The script that unpacks `archive`, a file name in `volume`. All its paths are absolute."""
    return _SCRIPT.format(
        archive=shlex.quote(str(volume / archive)),
        target=shlex.quote(str(volume / "models")),
        # The folder is on the same file system, so that a rename puts a file in place.
        staging=shlex.quote(str(volume / f".{archive}.staging")),
        volume=shlex.quote(str(volume)),
        size=size,
        count=count,
        checksums=CHECKSUMS_NAME,
        script=SCRIPT_NAME,
    )


def write_archive(archive: Path, folder: Path, files: list[Path], script: str) -> None:
    """Writes the archive without compression, which does not shrink weights. The script is first, to be found fast."""
    checksums = []
    with tarfile.open(archive, "w") as tar:
        _add_text(tar, SCRIPT_NAME, script, mode=0o755)
        for path in files:
            name = path.relative_to(folder).as_posix()
            print(f"  {shown(name)} ({path.stat().st_size / 1e6:.1f} MB)", flush=True)
            with path.open("rb") as file:
                checksums.append(checksum_line(hashlib.file_digest(file, "sha256").hexdigest(), name))
            tar.add(path.resolve(), arcname=name)
        _add_text(tar, CHECKSUMS_NAME, "\n".join(checksums) + "\n", mode=0o644)


def checksum_line(digest: str, name: str) -> str:
    """A line for ``sha256sum --check``; a backslash in front means that the name contains escaped characters."""
    escaped = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    return f"{chr(92) if escaped != name else ''}{digest}  {escaped}"


def shown(name: str) -> str:
    """The name on one line, in characters that any terminal can show."""
    return name.encode("unicode_escape", "surrogateescape").decode() if not name.isprintable() else name


def _add_text(tar: tarfile.TarFile, name: str, text: str, *, mode: int) -> None:
    member = tarfile.TarInfo(name)
    content = os.fsencode(text)  # names that are not UTF-8 keep their bytes
    member.size, member.mode, member.mtime = len(content), mode, int(time.time())
    tar.addfile(member, io.BytesIO(content))


def instructions(archive: Path, volume: Path) -> str:
    remote = shlex.quote(str(volume / archive.name))
    return f"""
On a pod that has the volume at {volume}, in its terminal:
    cd {shlex.quote(str(volume))}
    runpodctl receive CODE        # the code that runpodctl shows below
    tar --extract --to-stdout --file {remote} {SCRIPT_NAME} | bash
The script checks every file, puts the models into {volume}/models and removes the archive.
A serverless worker then finds them at /runpod-volume/models.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("local", type=Path, metavar="LOCAL")
    parser.add_argument("volume", type=Path, metavar="VOLUME")
    parser.add_argument("--archive-dir", type=Path, default=Path(), help="folder for the archive (.)")
    parser.add_argument("--keep", action="store_true", help="keep the archive after it was sent")
    parser.add_argument("--no-send", action="store_true", help="make the archive but do not send it")
    parser.add_argument("--dry-run", action="store_true", help="list the files that would be sent, and send nothing")
    arguments = parser.parse_args()
    if not arguments.volume.is_absolute():
        parser.error("VOLUME must be the absolute path at which the pod mounts the volume, such as /workspace")
    files = model_files(arguments.local)
    size = sum(path.stat().st_size for path in files)
    if not files:
        print(f"{arguments.local} has no models", file=sys.stderr)
        return 66
    print(f"{len(files)} files, {size / 1e9:.2f} GB")
    if arguments.dry_run:
        print("\n".join(f"  {shown(str(path.relative_to(arguments.local)))}" for path in files))
        return 0
    sender = shutil.which("runpodctl")
    if sender is None and not arguments.no_send:
        print("runpodctl is not installed: install it, or make only the archive with --no-send", file=sys.stderr)
        return 69
    archive = arguments.archive_dir.resolve() / time.strftime("models-%Y%m%d-%H%M%S.tar")
    if size > shutil.disk_usage(archive.parent).free:
        print(
            f"{archive.parent} has no room for the archive: choose another folder with --archive-dir", file=sys.stderr
        )
        return 73
    script = extract_script(archive.name, arguments.volume, size=size, count=len(files))
    try:
        write_archive(archive, arguments.local, files, script)
    except BaseException:
        archive.unlink(missing_ok=True)
        raise
    print(f"made {archive}{os.linesep}{instructions(archive, arguments.volume)}", flush=True)
    if arguments.no_send or sender is None:
        return 0
    status = subprocess.run([sender, "send", str(archive)], check=False).returncode  # noqa: S603 - the user's own tool
    if status == 0 and not arguments.keep:
        archive.unlink()
    return status


if __name__ == "__main__":
    sys.exit(main())
