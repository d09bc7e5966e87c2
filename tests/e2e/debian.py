"""Unpacks programs of a newer Debian into a folder, beside the system's own: `python debian.py FOLDER SUITE PACKAGE…`.

It uses the mirror of this machine's apt, needs no root, and installs nothing. The programs are written in Go, and need only the C
library.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

KEYS = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


def main(folder: Path, suite: str, packages: list[str]) -> None:
    if shutil.which("apt-get") is None or not KEYS.is_file():
        raise SystemExit("this machine has no apt of Debian, from which `make e2e` has newer servers")
    folder = folder.resolve()
    for name in ("lists/partial", "cache/archives/partial", "root"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    sites = _run("apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages", "Origin: Debian").split()
    if not sites:
        raise SystemExit("apt knows no mirror of Debian yet: run `apt-get update`")
    sources = folder / "sources.list"
    sources.write_text(f"deb [signed-by={KEYS}] {sites[0]} {suite} main\n", "utf-8")
    own = [
        f"Dir::Etc::SourceList={sources}",
        "Dir::Etc::SourceParts=-",
        f"Dir::State::Lists={folder / 'lists'}",
        f"Dir::Cache={folder / 'cache'}",
        "APT::Sandbox::User=",  # root may own the folder
    ]
    options = [word for option in own for word in ("--option", option)]
    _run("apt-get", *options, "update")
    _run("apt-get", *options, "download", *packages, cwd=folder)
    for file in folder.glob("*.deb"):
        _run("dpkg-deb", "--extract", str(file), str(folder / "root"))
        file.unlink()
    for name in ("lists", "cache"):
        shutil.rmtree(folder / name)
    (folder / "bin").symlink_to(folder / "root" / "usr" / "bin")


def _run(*command: str, cwd: Path | None = None) -> str:
    return subprocess.run(command, cwd=cwd, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
