"""Packs a finished run into one file to share: report, figures, tables, parameters, provenance and checksums.

`python -m lib.report.archive outputs/<run>` writes outputs/<run>.tar.gz, without statistics and notebooks, which no
page needs.
The same run gives the same bytes.
"""

import gzip
import io
import json
import sys
import tarfile
from hashlib import sha256
from pathlib import Path

import yaml

from lib.base.errors import InputError, exit_on_input_error, listed
from lib.base.files import write_atomically

FILES = ("params.yaml", "provenance.json")
FOLDERS = ("report", "figures", "tables")  # pages link to figures and tables


def contents(folder: Path) -> list[Path]:
    """The files of a run that are shared, sorted; InputError if the run is not finished."""
    missing = [name for name in (*FILES, "report/index.html") if not (folder / name).is_file()]
    if not missing and not any((folder / "tables").glob("*.parquet")):
        missing = ["tables/*.parquet"]
    if not missing:
        made, asked = (
            json.loads((folder / "provenance.json").read_text())["parameters"],
            yaml.safe_load((folder / "params.yaml").read_text()),
        )
        other = sorted(name for name in made if name in asked and made[name] != asked[name])
        missing = [f"report for its params.yaml: {listed(other)} differed when it was made"] if other else []
    if (folder / "unfinished").exists() or missing:
        why = f"it has no {missing[0]}" if missing else f"a notebook stopped and lies in {folder / 'unfinished'}"
        raise InputError(f"the run in {folder} is not finished ({why}); `make report RUN={folder.name}` finishes it.")
    inside = [path for name in FOLDERS for path in (folder / name).rglob("*") if path.is_file()]
    return sorted([*inside, *(folder / name for name in FILES)])


def archive(folder: Path) -> Path:
    """Writes outputs/<run>.tar.gz with one folder, the run's, and a SHA256SUMS in it that `sha256sum -c` reads."""
    files = contents(folder)
    packed = folder.with_name(f"{folder.name}.tar.gz")

    def write(temporary: Path) -> None:
        sums = []
        # no times and no owners, so that an archive depends on what is in it alone
        with temporary.open("wb") as raw, gzip.GzipFile("", "wb", mtime=0, fileobj=raw) as zipped:
            with tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as tar:
                for path in files:
                    name, data = path.relative_to(folder).as_posix(), path.read_bytes()
                    sums.append(f"{sha256(data).hexdigest()}  {name}\n")
                    _add(tar, f"{folder.name}/{name}", data)
                _add(tar, f"{folder.name}/SHA256SUMS", "".join(sums).encode())

    write_atomically(packed, write)
    return packed


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), 0o644
    tar.addfile(entry, io.BytesIO(data))


@exit_on_input_error
def main(arguments: list[str] | None = None) -> int:
    """Command line: the folder of a run; prints the path of its archive."""
    given = sys.argv[1:] if arguments is None else arguments
    if len(given) != 1:
        print("usage: python -m lib.report.archive outputs/<run>", file=sys.stderr)
        return 2
    packed = archive(Path(given[0]))
    print(f"Archive: {packed.resolve()} ({packed.stat().st_size / 1e6:.1f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
