"""Spark gives what the embedded engine gives: the golden results, which `test_golden.py` holds, and the definition."""

import importlib.util
import shutil
import sys

import golden_cases
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_golden import BAD, GOLDEN, OPTIONS, REAL, ROW, check_by_definition

from hf_genrec.data.prepare import prepare
from hf_genrec.data.spark import LOCAL_MEMORY, Spark


has_spark = importlib.util.find_spec("pyspark") is not None and shutil.which("java") is not None
needs_spark = pytest.mark.skipif(not has_spark, reason="PySpark and Java 17 are not installed")


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """One session on two cores for all tests: Java takes seconds to start, and more to become quick."""
    from pyspark.sql import SparkSession

    quick = {
        "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.memory": LOCAL_MEMORY,
        "spark.log.level": "ERROR",
        "spark.pyspark.python": sys.executable,
        "spark.sql.adaptive.enabled": "false",
        "spark.sql.codegen.wholeStage": "false",
        "spark.sql.warehouse.dir": str(tmp_path_factory.mktemp("warehouse")),
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
    }
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYSPARK_PYTHON", sys.executable)
        builder = SparkSession.builder.master("local[2]")
        for name, value in quick.items():
            builder = builder.config(name, value)
        session = builder.getOrCreate()
        yield session
        session.stop()


def numbers_of(batches, name):
    return np.concatenate([batch[name].to_numpy() for batch in batches])


@needs_spark
@pytest.mark.slow
class TestSession:
    """All in one class: they share the session."""

    def test_rows_come_back_in_order_from_many_batches(self, session, monkeypatch):
        monkeypatch.setattr("hf_genrec.data.spark.ROWS_AT_ONCE", 70)
        engine, numbers = Spark(), np.random.default_rng(0).permutation(1001)
        table = pa.table(
            {"number": numbers, "name": pa.array(map(str, numbers), pa.large_string()).dictionary_encode()}
        )

        engine.load("rows", table.to_reader(37))
        engine.create("rows", "SELECT number, name FROM rows WHERE number <> 500")
        batches = list(engine.batches("SELECT number, name FROM rows ORDER BY number DESC"))

        np.testing.assert_array_equal(numbers_of(batches, "number"), np.delete(np.arange(1001), 500)[::-1])
        assert engine.table("SELECT name FROM rows WHERE number = 7").to_pylist() == [{"name": "7"}]
        assert engine.columns("rows") == ["number", "name"]

    def test_tables_that_are_replaced_or_dropped_take_no_room(self, session):
        stored = session.sparkContext._jsc.getPersistentRDDs
        before, engine = stored().size(), Spark()
        engine.load("rows", pa.table({"number": [1, 2, 3]}).to_reader())
        for _ in range(5):
            engine.create("rows", "SELECT number + 1 AS number FROM rows")

        assert stored().size() == before + 1
        assert engine.table("SELECT max(number) AS number FROM rows").to_pylist() == [{"number": 8}]
        engine.close()
        assert stored().size() == before

    def test_joins_within_one_process_copy_no_tables_into_its_memory(self, session):
        engine = Spark()
        engine.load("rows", pa.table({"number": [1, 2, 3]}).to_reader())

        plan = engine.table("EXPLAIN SELECT * FROM rows JOIN rows AS others ON others.number = rows.number")

        assert "Join" in plan["plan"][0].as_py()
        assert "Broadcast" not in plan["plan"][0].as_py()
        engine.close()

    @pytest.mark.parametrize("name", GOLDEN)
    def test_a_log_gives_what_it_gives_on_the_embedded_engine(self, session, tmp_path, name):
        form = golden_cases.FORMS[list(GOLDEN).index(name) % len(golden_cases.FORMS)]

        prepared = golden_cases.prepare_case(name, form, tmp_path, engine="spark")

        assert golden_cases.summary_of(prepared) == GOLDEN[name]

    @pytest.mark.parametrize("form", BAD)
    def test_bad_lines_are_counted_as_on_the_embedded_engine(self, session, tmp_path, form):
        assert golden_cases.summary_of(golden_cases.prepare_bad(form, tmp_path, engine="spark")) == BAD[form]

    @pytest.mark.parametrize("name", REAL)
    def test_a_real_log_gives_what_it_gives_on_the_embedded_engine(self, session, shared_data, tmp_path, name):
        prepared = golden_cases.prepare_real(name, shared_data, tmp_path / "data", engine="spark")

        assert golden_cases.summary_of(prepared) == REAL[name]

    @settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
    @given(rows=st.lists(ROW, min_size=1, max_size=40), options=OPTIONS)
    def test_the_splits_are_those_of_the_definition(self, session, tmp_path, rows, options):
        check_by_definition(tmp_path / "data", rows, options, engine="spark")

    @pytest.mark.parametrize("kind", ["one file", "list of files", "folder", "table", "view", "frame"])
    def test_executors_read_what_they_reach(self, session, tmp_path, kind):
        rows = golden_cases.records_of(golden_cases.log_of("plain"))
        table = pa.Table.from_pylist(rows)
        folder, name = tmp_path / "a folder.parquet", f"log_{kind.replace(' ', '_')}"
        folder.mkdir()
        for start in range(0, table.num_rows, 61):  # small files last: Spark packs large ones first
            pq.write_table(table.slice(start, 61), folder / f"part [{start:03}].parquet", row_group_size=17)
        files = sorted(folder.iterdir())
        if kind == "one file":
            pq.write_table(table, tmp_path / "log.parquet")
        frame = session.createDataFrame(table)
        if kind == "table":
            session.sql(f"CREATE TABLE {name} USING parquet LOCATION '{folder}'")
        frame.createOrReplaceTempView("log_view")
        sources = {"one file": tmp_path / "log.parquet", "list of files": files, "folder": folder, "table": name}
        source = (sources | {"view": "log_view", "frame": frame})[kind]
        options = {"items": golden_cases.items_of(golden_cases.log_of("plain")), "missing_text": "keep"}

        prepared = prepare(tmp_path / "data", interactions=source, engine="spark", **options)

        assert golden_cases.summary_of(prepared) == GOLDEN["plain, plain"]

    def test_a_million_rows_give_the_same_on_both_engines(self, session, tmp_path):
        draw, number = np.random.default_rng(0), 10**6
        columns = {"user_id": draw.zipf(1.5, number) % 100_003, "item_id": draw.zipf(1.3, number) % 20_011}
        table = pa.table(columns | {"timestamp": 1_600_000_000 + draw.integers(0, 10**6, number)})
        pq.write_table(table, tmp_path / "log.parquet")
        options = {"items": [{"item_id": "0", "title": "Most taken"}], "missing_text": "keep"}
        options |= {"interactions": tmp_path / "log.parquet", "deduplicate": True, "k_core": 5}

        ours, theirs = (prepare(tmp_path / engine, engine=engine, **options) for engine in ("duckdb", "spark"))

        assert theirs.metadata == ours.metadata
        assert ours.metadata["steps"][-1]["num_interactions"] > 80_000

    def test_bad_rows_of_files_are_counted_by_executors(self, session, tmp_path):
        table = golden_cases.write_bad_log("table", tmp_path)
        pq.write_table(table, tmp_path / "b.parquet", row_group_size=40)
        pq.write_table(table.slice(0, 1), tmp_path / "a.parquet")
        files = [tmp_path / "b.parquet", tmp_path / "a.parquet"]
        options = {"items": golden_cases.items_of(golden_cases.log_of("plain")), "missing_text": "keep"}
        options |= {"rating": "rating", "on_error": "skip"}

        ours = prepare(tmp_path / "ours", interactions=files, **options)
        theirs = prepare(tmp_path / "theirs", interactions=files, engine="spark", **options)

        assert theirs.metadata == ours.metadata
        assert f"{files[0]}: row 1: timestamp 'soon'" in theirs.metadata["skipped"]["log_first_line"]
        with pytest.raises(ValueError, match=f"{files[0]}: row 1: timestamp 'soon' is neither"):
            prepare(tmp_path / "more", interactions=files, engine="spark", **options | {"on_error": "raise"})

    def test_what_spark_cannot_read_is_named(self, session, tmp_path):
        (tmp_path / "log.parquet").write_bytes(b"PAR1 and no more")
        options = {"items": [{"item_id": "a", "title": "A"}], "engine": "spark"}
        with pytest.raises(ValueError, match="log.parquet cannot be read by Spark: .*log.parquet"):
            prepare(tmp_path / "data", interactions=tmp_path / "log.parquet", **options)
        frame = session.createDataFrame(pa.table({"user_id": ["u"], "item_id": [True], "timestamp": [1]}))
        with pytest.raises(ValueError, match="the DataFrame: the column for `item` holds true and false"):
            prepare(tmp_path / "data", interactions=frame, **options)
        with pytest.raises(ValueError, match="the DataFrame has no column 'customer'; it has 'user_id'"):
            prepare(tmp_path / "data", interactions=frame, user="customer", **options)
        with pytest.raises(FileNotFoundError, match="no_table is not a file"):
            prepare(tmp_path / "data", interactions="no_table", **options)

    def test_another_master_than_that_of_the_session_is_refused(self, session):
        with pytest.raises(
            ValueError, match=r"`master` is 'local\[3\]', and this process has a session on 'local\[2\]'"
        ):
            Spark("local[3]")


def test_what_is_missing_for_spark_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    if importlib.util.find_spec("pyspark") is not None:
        with pytest.raises(OSError, match="needs Java 17 or newer: java is not there. Set JAVA_HOME"):
            Spark("local[2]")
        monkeypatch.setenv("JAVA_HOME", str(tmp_path))
        with pytest.raises(OSError, match=f"{tmp_path}/bin/java is not there"):
            Spark("local[2]")
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "java").write_text("#!/bin/sh\necho UnsupportedClassVersionError >&2\nexit 1\n")
        (tmp_path / "bin" / "java").chmod(0o755)
        with pytest.raises(OSError, match="Spark did not start: it needs Java 17 or newer"):
            Spark("local[2]")
    monkeypatch.setitem(sys.modules, "pyspark.sql", None)
    with pytest.raises(ImportError, match=r'pip install "hf-genrec\[spark\]", and Java 17'):
        Spark("local[2]")


def test_engines_are_two_and_a_master_is_for_spark(tmp_path):
    with pytest.raises(ValueError, match='`engine` must be "duckdb" or "spark", got \'dask\''):
        golden_cases.prepare_case("plain, plain", "table", tmp_path, engine="dask")
    with pytest.raises(ValueError, match="`master` is for `engine=\"spark\"`, got 'duckdb'"):
        golden_cases.prepare_case("plain, plain", "table", tmp_path, master="local[2]")
