"""
Delimited text the quick way: DuckDB reads large files of which no line leaves a doubt.

What a line means is decided in `text_files.py`, which reads what is not plain: another encoding, a quotation mark out
of place, a row of the wrong length. Then nothing comes out here, and the file is read line by line.

DuckDB's own list of bad lines (`store_rejects`) is no way around that: a quotation mark that nothing closes takes the
good rows behind it along, unseen (11 of the 170 of a log of the tests, on 2.0.1).
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from hf_genrec.data.spools import Spool
from hf_genrec.data.text_files import TextFile


_LEAST = 2**20  # bytes; smaller files take no time either way
_ROWS_AT_ONCE = 2**18


def plain_rows(file: TextFile, columns: Mapping[str, str]) -> Spool | None:
    """
    Some columns of a file as texts, under new names; `None` if a line leaves a doubt.

    Args: the file, and the fields by the names of the columns, of which the first holds no blank text.
    """
    if file.path.stat().st_size < _LEAST or any(mark in str(file.path) for mark in "*?[") or not file.is_plain():
        return None
    spool, is_blank = Spool(), str(file.delimiter).isspace()
    try:
        with duckdb.connect(config={"temp_directory": tempfile.gettempdir()}) as connection:
            for batch in connection.sql(_query(file, columns), params=[str(file.path)]).to_arrow_reader(_ROWS_AT_ONCE):
                # A line of tabs alone is a blank line, not a row of empty fields.
                if is_blank and pc.any(pc.equal(pc.utf8_trim_whitespace(batch.column(0)), "")).as_py():
                    return None
                spool.add(pa.Table.from_batches([batch]))
    except duckdb.Error:
        return None
    return spool


def _query(file: TextFile, columns: Mapping[str, str]) -> str:
    """Everything is given and nothing inferred, nothing is null, and the first malformed line is an error."""
    texts = ", ".join(f"'c{at}': 'VARCHAR'" for at in range(len(file.header)))
    wanted = ", ".join(f"c{file.header.index(name)} AS {key}" for key, name in columns.items())
    quote = "" if file.delimiter == "\t" else '"'
    with file.path.open("rb") as content:
        packing = "gzip" if content.read(2) == b"\x1f\x8b" else "none"
    mark = str(file.delimiter).replace("'", "''")
    return (
        f"SELECT {wanted} FROM read_csv(?, auto_detect = false, columns = {{{texts}}}, delim = '{mark}', "
        f"quote = '{quote}', escape = '{quote}', header = {file.has_header}, nullstr = '\x01\x01', "
        f"strict_mode = true, null_padding = false, compression = '{packing}')"
    )
