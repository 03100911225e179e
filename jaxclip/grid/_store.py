"""A sweep on disk: a zarr table, and a record of each chunk that is finished.

    STORE/sweep.json   what the sweep is and how it is cut; written once, first
    STORE/table.zarr   the table, one file a leaf and chunk
    STORE/done/I-J     that chunk I, J is finished, and the checksums of its files
    STORE/lock         held by the process that writes

A chunk's record is written when the chunk itself is safe on the disk, so that a
process may be killed at any moment: what has a record is whole, and what has none is
computed again.
"""

import dataclasses
import errno
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from ._disk import digest, explained, make_folders, read_json, sync, write_json
from ._fingerprint import differences
from ._layout import Layout
from ._result import SweepTable, blank


@dataclasses.dataclass(frozen=True)
class Store:
    """The folder of one sweep.

    - `layout`: how the sweep is cut, which is decided when the store is made.
    - `attrs`: where its numbers come from.
    """

    path: Path
    table: SweepTable
    layout: Layout
    attrs: dict[str, Any]

    @classmethod
    def open(
        cls, path: Path, table: SweepTable, identity: dict[str, Any]
    ) -> "Store | None":
        """The store in a folder, or None where there is none yet.

        **Raises:**

        A `ValueError` where the folder holds something else, or another sweep.
        """
        about = _read(path)
        if about is None:
            return None
        different = differences(identity, about["identity"])
        if different:
            raise ValueError(
                f"`store` {str(path)!r} is that of another sweep: different are "
                f"{', '.join(different)}. Take another folder, or delete it to start "
                "afresh."
            )
        layout = Layout(
            tuple(about["lengths"]), tuple(about["block"]), int(about["split"])
        )
        return cls(path, table, layout, about["attrs"])

    def create(self, identity: dict[str, Any], writable: bool = True) -> None:
        """Makes what is not there of the store."""
        about = {
            "identity": identity,
            **dataclasses.asdict(self.layout),
            "attrs": self.attrs,
        }
        with explained(self.path):
            if not writable:
                # Before the work: it must not be done in vain.
                raise PermissionError(errno.EACCES, "read-only")
            if not (self.path / "sweep.json").exists():
                write_json(self.path / "sweep.json", about)
            make_folders(self.done)
            table = self.path / "table.zarr"
            if not table.exists():
                _make_table(table, self)
            # What zarr was writing when a process was killed.
            for file in table.rglob("*.partial"):
                file.unlink()

    @property
    def done(self) -> Path:
        """The folder of the records."""
        return self.path / "done"

    def finished(self) -> set[tuple[int, ...]]:
        """The chunks that need not be computed.

        Every file is read, and a chunk that has been damaged since is not among them:
        a warning says which, and it will be computed again.
        """
        found = set()
        for chunk in self.layout.chunks():
            record = read_json(self.done / _name(chunk))
            if record is None:
                continue
            files = self._files(chunk)
            if [digest(file) for file in files] == record.get("sha256"):
                found.add(chunk)
            else:
                warnings.warn(
                    f"Chunk {_name(chunk)} of the store {str(self.path)!r} does not "
                    "match its checksum: a file was changed or damaged after it was "
                    f"written, one of {', '.join(map(str, files))}. It is computed "
                    "again.",
                    stacklevel=2,
                )
        return found

    def seconds(self) -> float:
        """What the recorded chunks took, all runs and processes together."""
        records = (
            read_json(self.done / _name(chunk)) for chunk in self.layout.chunks()
        )
        return sum(record["seconds"] for record in records if record)

    def write(
        self, chunk: tuple[int, ...], results: list[np.ndarray], seconds: float
    ) -> None:
        """Writes a finished chunk, and returns when it is safe on the disk."""
        where = self.layout.region(chunk)
        region = tuple(where[i] for i in self.table.order)
        files = self._files(chunk)
        with explained(self.path):
            for file, array, part in zip(
                files, self.arrays("r+"), results, strict=True
            ):
                # A leaf without numbers has no file.
                if part.size:
                    make_folders(file.parent)
                    # Or a zarr before 3.1 reads what a killed process has left there
                    # of a chunk that reaches beyond the table.
                    file.unlink(missing_ok=True)
                    array[region] = self.table.to_user(part)
                    sync(file)
                    sync(file.parent)
            checksums = [digest(file) for file in files]
            record = {"sha256": checksums, "seconds": seconds}
            write_json(self.done / _name(chunk), record)

    def arrays(self, mode: str = "r") -> tuple[Any, ...]:
        """The table's zarr arrays, leaf by leaf; nothing is read yet."""
        import zarr

        group: Any = zarr.open_group(self.path / "table.zarr", mode=mode)  # pyright: ignore[reportArgumentType]  a literal
        arrays = [group[name] for name in self.table.names]
        if mode == "r":
            return tuple(arrays)
        # A chunk of zeros is a result like any other.
        return tuple(
            array.with_config({"write_empty_chunks": True}) for array in arrays
        )

    def _files(self, chunk: tuple[int, ...]) -> list[Path]:
        """The file of each leaf, where the zarr format says that it is."""
        place = [str(chunk[i]) for i in self.table.order]
        leaves = zip(self.table.names, self.table.shapes, strict=True)
        root = self.path / "table.zarr"
        return [root.joinpath(n, "c", *place, *["0"] * len(s)) for n, s in leaves]


def _read(path: Path) -> dict[str, Any] | None:
    """What a store is about, or None in an empty folder or where there is none."""
    if path.is_dir():
        # What a process leaves that is killed before it has said what it will write.
        others = {file.name for file in path.iterdir()} - {"lock", "sweep.json.part"}
        if not others:
            return None
        about = read_json(path / "sweep.json")
        if about is not None and "identity" in about:
            return about
    elif not path.exists():
        return None
    raise ValueError(
        f"`store` must be a folder that a sweep wrote, an empty or a new one. "
        f"{str(path)!r} is something else; it is left as it is."
    )


def _make_table(path: Path, store: Store) -> None:
    """Makes the zarr table, as a whole or not at all, without its numbers."""
    import zarr

    table = store.table
    coordinates = table.coordinates()
    beside = [name for name, (dims, _, _) in coordinates.items() if (name,) != dims]
    # Where xarray looks for coordinates that are not dimensions.
    attrs = store.attrs | ({"coordinates": " ".join(beside)} if beside else {})
    part = path.with_name(f"{path.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    group = zarr.open_group(part, mode="w", zarr_format=3, attributes=attrs)
    for name, (dims, values, about) in coordinates.items():
        group.create_array(
            name, data=values, dimension_names=dims, attributes=dict(about)
        )
    _make_arrays(group, table, store.layout)
    for file in (part, *part.rglob("*")):
        sync(file)
    part.replace(path)
    sync(path.parent)


def _make_arrays(group: Any, table: SweepTable, layout: Layout) -> None:
    """The arrays of the results; a chunk of the sweep is one of theirs."""
    from zarr.codecs import Crc32cCodec, ZstdCodec

    lengths = tuple(layout.lengths[i] for i in table.order)
    block = tuple(layout.block[i] for i in table.order)
    for i, name in enumerate(table.names):
        shape = table.shapes[i]
        group.create_array(
            name,
            shape=lengths + shape,
            chunks=block + tuple(max(1, n) for n in shape),
            dtype=table.dtypes[i],
            # Read where no chunk has been written: 0 would pass for a result.
            fill_value=blank(table.dtypes[i]),
            dimension_names=table.dims(i),
            attributes=dict(table.about(name)),
            # A checksum in each file, so that a damaged one is never read.
            compressors=(ZstdCodec(level=1), Crc32cCodec()),
        )


def _name(chunk: tuple[int, ...]) -> str:
    return "-".join(map(str, chunk))
