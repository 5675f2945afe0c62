"""Packs a finished run into one file to share: report, figures, tables, parameters, provenance and checksums.

`python -m lib.report.archive outputs/<run>` writes outputs/<run>.tar.gz, without statistics and notebooks: no page
needs them. The same run gives the same bytes.
"""

import gzip
import io
import sys
import tarfile
from hashlib import sha256
from pathlib import Path

import yaml

from lib.base.errors import InputError, exit_on_input_error, listed
from lib.base.files import read_json, write_atomically

FILES = ("params.yaml", "provenance.json")
FOLDERS = ("report", "figures", "tables")  # pages link to figures and tables


def contents(folder: Path) -> list[Path]:
    """The files of a run that are shared, sorted; InputError if the run is not finished."""
    why = _unfinished(folder)
    if why:
        raise InputError(f"the run in {folder} is not finished ({why}); `make report RUN={folder.name}` finishes it.")
    inside = [path for name in FOLDERS for path in (folder / name).rglob("*") if path.is_file()]
    return sorted([*inside, *(folder / name for name in FILES)])


def _unfinished(folder: Path) -> str | None:
    """Why a run is not finished, or None."""
    if (folder / "unfinished").exists():
        return f"a notebook stopped and lies in {folder / 'unfinished'}"
    for name in (*FILES, "report/index.html", "tables/*.parquet"):
        if not any(folder.glob(name)):
            return f"it has no {name}"
    made = read_json(folder / "provenance.json")["parameters"]
    asked = yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))
    other = sorted(name for name in made if name in asked and made[name] != asked[name])
    return f"it has no report for its params.yaml: {listed(other)} differed when it was made" if other else None


def archive(folder: Path) -> Path:
    """Writes outputs/<run>.tar.gz: the run's folder with a SHA256SUMS in it that `sha256sum -c` reads."""
    files = contents(folder)
    packed = folder.with_name(f"{folder.name}.tar.gz")

    def write(temporary: Path) -> None:
        sums = []
        # without times and owners, so that the same content gives the same bytes
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
