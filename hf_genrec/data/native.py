"""
Text files the quick way: DuckDB reads delimited files, Arrow JSON Lines, where no line leaves a doubt.

What a line means is decided in `text_files.py`, which reads what is not plain: another encoding, a quotation mark out
of place, a row of the wrong length, a key that comes twice. Then nothing comes out here, and the file is read line by
line.

DuckDB's own list of bad lines (`store_rejects`) is no way around that: a quotation mark that nothing closes takes the
good rows behind it along, unseen (11 of the 170 of a log of the tests, on 2.0.1).
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from hf_genrec.data.spools import Spool
from hf_genrec.data.text_files import MAX_DIGITS, TextFile, parse_json


_LEAST = 2**20  # bytes; smaller files take no time either way
_ROWS_AT_ONCE = 2**18
_SURVEYED, _MOST_FIELDS = 100, 200  # lines that say which fields there are, and these with those inside of others
_KINDS = {str: pa.string(), int: pa.int64(), float: pa.float64()}
_DIGITS = bytes(b"0"[0] if byte in b"0123456789" else 0 for byte in range(256))  # what becomes of a byte


def plain_rows(file: TextFile, columns: Mapping[str, str]) -> Spool | None:
    """
    Some fields of a file as texts; `None` if a line leaves a doubt.

    Args: the file, and the fields by our names; that of the first one holds no blank text.
    """
    if file.path.stat().st_size < _LEAST or any(mark in str(file.path) for mark in "*?["):
        return None
    spool = Spool()
    try:
        for table in _json_lines(file, columns) if file.delimiter is None else _delimited(file, [*columns.values()]):
            spool.add(table)
    except (_Doubt, UnicodeDecodeError, duckdb.Error, pa.ArrowException):
        return None
    return spool


class _Doubt(Exception):
    """A line may mean something else than what was read."""


def _delimited(file: TextFile, fields: Sequence[str]) -> Iterator[pa.Table]:
    """Everything is given and nothing inferred, nothing is null, and the first malformed line is an error."""
    if not next(file.lines()).text.strip():  # of the lines before a header DuckDB takes one for it
        raise _Doubt
    ends = rf"[{re.escape(str(file.delimiter))}\r\n]".encode()
    # Blanks between a quotation mark that opens or closes a field and its end: DuckDB leaves them out.
    blanks = re.compile(rb'(?:\A|%b) +"(?:"")*+(?!")|(?<!")"(?:"")*+ +(?:"|%b|\Z)' % (ends, ends))
    for block in file.blocks():
        block.decode()
        if (b'" ' in block or b' "' in block) and file.delimiter != "\t" and blanks.search(block):
            raise _Doubt
    texts = ", ".join(f"'c{at}': 'VARCHAR'" for at in range(len(file.header)))
    wanted = ", ".join(f"c{file.header.index(field)}" for field in fields)
    quote, mark = "" if file.delimiter == "\t" else '"', str(file.delimiter).replace("'", "''")
    with file.path.open("rb") as content:
        packing = "gzip" if content.read(2) == b"\x1f\x8b" else "none"
    query = (
        f"SELECT {wanted} FROM read_csv(?, auto_detect = false, columns = {{{texts}}}, delim = '{mark}', "
        f"quote = '{quote}', escape = '{quote}', header = {file.has_header}, nullstr = '\x01\x01', "
        f"strict_mode = true, null_padding = false, compression = '{packing}')"
    )
    with duckdb.connect(config={"temp_directory": tempfile.gettempdir()}) as connection:
        for batch in connection.sql(query, params=[str(file.path)]).to_arrow_reader(_ROWS_AT_ONCE):
            # A line of tabs alone is a blank line, not a row of empty fields.
            if str(file.delimiter).isspace() and pc.any(pc.equal(pc.utf8_trim_whitespace(batch[0]), "")).as_py():
                raise _Doubt
            yield pa.Table.from_batches([batch]).rename_columns(list(fields))


def _json_lines(file: TextFile, columns: Mapping[str, str]) -> Iterator[pa.Table]:
    """
    The first lines say which fields there are, and of which types. Arrow parses those that are not wanted, too, since
    they may be malformed; a field that came later would take room for each row of a block.
    """
    options: pj.ParseOptions | None = None
    for block in file.blocks():
        block.decode()
        if options is None:
            schema = _schema_of([line for line in block.split(b"\n", _SURVEYED)[:_SURVEYED] if line], columns)
            options = pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error")
        num_lines = block.count(b"\n") + (not block.endswith(b"\n"))
        # Each line is an object: of two on a line Arrow would make two rows, of one on two lines a row.
        border = b"}\r\n{" if b"\r" in block else b"}\n{"
        are_objects = block.startswith(b"{") and block.endswith((b"}", b"}\n", b"}\r\n"))
        are_lines = block.count(border) == num_lines - 1 and block.count(b"\r") == block.count(b"\r\n")
        if not (are_objects and are_lines) or b"0" * MAX_DIGITS in block.translate(_DIGITS):
            raise _Doubt
        found = pj.read_json(pa.BufferReader(block), parse_options=options)
        if found.num_rows != num_lines:
            raise _Doubt
        yield pa.table({field: _texts_of(found[field]) for field in columns.values()}).combine_chunks()


def _schema_of(lines: Sequence[bytes], columns: Mapping[str, str]) -> pa.Schema:
    """The types of the fields in some lines; of those wanted, which hold no nested values, the types in the first."""
    try:
        records = [parse_json(line.decode()) for line in lines]
        found = pa.array(records).type if all(isinstance(record, dict) for record in records) else None
    except (ValueError, OverflowError) as error:
        raise _Doubt from error
    if found is None or str(found).count(": ") > _MOST_FIELDS:
        raise _Doubt
    kinds = {key: type(records[0].get(field)) for key, field in columns.items()}
    if any(kind not in _KINDS or (kind is float and key in ("user_id", "item_id")) for key, kind in kinds.items()):
        raise _Doubt
    wanted = {columns[key]: _KINDS[kind] for key, kind in kinds.items()}
    return pa.schema([(field.name, wanted.get(field.name) or _lenient(field.type)) for field in found])


def _lenient(kind: pa.DataType) -> pa.DataType:
    """A type for what later lines may hold: any number."""
    if pa.types.is_list(kind):
        return pa.list_(_lenient(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _lenient(field.type)) for field in kind])
    return pa.float64() if pa.types.is_integer(kind) else kind


def _texts_of(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """As [`~columns.text_of`] writes values; for floats of other sizes it takes another form than Arrow."""
    if pa.types.is_floating(column.type):
        column = pc.add(column, 0.0)  # no -0
        sizes = pc.abs(column)
        is_usual = pc.or_(pc.equal(sizes, 0), pc.and_(pc.greater(sizes, 1e-3), pc.less(sizes, 1e14)))
        if not pc.all(is_usual).as_py():
            raise _Doubt
    return column.cast(pa.large_string())
