"""Tables as people have them: what is read all the same, and what is refused by file, row, column."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from fairtune.data import Manifest, load_dataset
from fairtune.data.tables import read_table
from fairtune.errors import InputError

from .official import LAYOUTS, encoded, ham_table, write


@pytest.fixture
def ham(tmp_path: Path) -> Path:
    LAYOUTS["ham10000"](tmp_path)
    return tmp_path


def load_with(ham: Path, table: pd.DataFrame | str | bytes, **options: Any) -> Manifest:
    path = ham / "HAM10000_metadata.csv"
    if isinstance(table, pd.DataFrame):
        table.to_csv(path, index=False)
    else:
        write(path, table)
    return load_dataset("ham10000", ham, **options)


def changed(column: str, row: int, value: object) -> pd.DataFrame:
    table = ham_table().astype({column: object})
    table.loc[row, column] = value
    return table


@pytest.mark.parametrize(
    ("column", "row", "value", "what"),
    [
        ("sex", 7, "femal", r"row 9, column 'sex': 'femal' is not one of: male"),
        ("age", 7, "forty", r"row 9, column 'age': 'forty' is not a number"),
        ("age", 7, "450", r"row 9, column 'age': '450' is not within 0 to 120"),
        ("age", 7, "-1", r"row 9, column 'age'"),
        ("age", 7, "inf", r"row 9, column 'age'"),
        ("dx", 7, "melanoma", r"row 9, column 'dx': 'melanoma' is not one of: akiec"),
        ("dx", 7, "", r"row 9, column 'dx': is empty"),
        ("image_id", 7, "ISIC_0000003", r"row 9, column 'image_id': 'ISIC_0000003' occurs twice"),
        ("image_id", 7, "", r"row 9, column 'image_id': is empty"),
        ("lesion_id", 7, "", r"row 9, column 'lesion_id': is empty"),
        (
            "image_id",
            7,
            "ISIC_9999999",
            r"1 of \d+ images are missing, the first is 'ISIC_9999999'",
        ),
    ],
)
def test_bad_cells(ham: Path, column: str, row: int, value: str, what: str) -> None:
    with pytest.raises(InputError, match=what) as caught:
        load_with(ham, changed(column, row, value))
    assert str(ham) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("column", ["image_id", "lesion_id", "dx", "age", "sex"])
def test_missing_column(ham: Path, column: str) -> None:
    with pytest.raises(
        InputError, match=rf"metadata\.csv: no column '{column}'.*it has: .*dx_type"
    ):
        load_with(ham, ham_table().drop(columns=column))


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "the file is empty"),
        (b"\n\n", "the file is empty"),
        (b"\xef\xbb\xbf", "the file is empty"),
        (b"lesion_id,image_id,dx,age,sex,localization\n", "no rows"),
        (b"lesion_id^image_id^dx\n1^2^3\n", r"no column 'dx' \(it has: lesion_id\^image_id\^dx"),
        (b"a,a\n1,2\n", "occurs twice|no column"),
        (b"a,b\n1,2\n1,2,3,4\n", "no readable table"),
        (b"\x00\x01\x02\xff\xfe", "no readable table|no column|no rows"),
    ],
)
def test_broken_files(ham: Path, data: bytes, what: str) -> None:
    with pytest.raises(InputError, match=f"({what})"):
        load_with(ham, data)


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252"])
def test_dialects_are_read_alike(ham: Path, delimiter: str, ends: str, encoding: str) -> None:
    table = ham_table()
    table.loc[0, "localization"] = "Rücken"
    expected = load_with(ham, table)
    text = table.to_csv(index=False, sep=delimiter, lineterminator=ends)
    assert load_with(ham, text.encode(encoding)).digest == expected.digest


@pytest.mark.parametrize("suffix", [".tab", ""])
def test_names_of_the_metadata_file(ham: Path, suffix: str) -> None:
    expected = load_dataset("ham10000", ham).digest
    (ham / "HAM10000_metadata.csv").rename(ham / f"HAM10000_metadata{suffix}")
    assert load_dataset("ham10000", ham).digest == expected


def test_extra_columns_and_case_and_spaces_are_fine(ham: Path) -> None:
    expected = load_dataset("ham10000", ham).digest
    table = ham_table().assign(dataset="vidir_modern")
    table["sex"] = [f" {sex.upper()} " for sex in table["sex"]]
    table.columns = [f" {name.upper()}" for name in table.columns]
    assert load_with(ham, table).digest == expected


def test_damaged_zip_is_named(ham: Path) -> None:
    write(ham / "HAM10000_images_part_2.zip", b"PK\3\4 half a download")
    with pytest.raises(
        InputError, match=r"part_2\.zip: no readable zip archive.*download it again"
    ):
        load_dataset("ham10000", ham)


def test_archive_still_packed_is_pointed_at(tmp_path: Path) -> None:
    write(tmp_path / "dataverse_files.zip", b"PK")
    with pytest.raises(InputError, match=r"is it in dataverse_files\.zip, still to be unpacked"):
        load_dataset("ham10000", tmp_path)


def test_no_row_is_left(ham: Path) -> None:
    with pytest.raises(InputError):
        load_with(ham, ham_table().assign(sex="unknown"))


def write_table(frame: pd.DataFrame, path: Path) -> None:
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    elif path.suffix == ".xlsx":
        frame.to_excel(path, index=False)
    else:
        frame.to_parquet(path)


def test_excel_and_parquet(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": [1.0, None], "b": ["x", "y"], "c": [1.5, 2.5]})
    frame.to_excel(tmp_path / "t.xlsx", index=False)
    frame.to_parquet(tmp_path / "t.parquet")
    frame.to_csv(tmp_path / "t.csv", index=False)
    for name in ("t.xlsx", "t.parquet", "t.csv"):
        table = read_table(tmp_path / name)
        assert table.numbers("a").tolist()[0] == 1.0
        assert table.text("a", required=False).isna().tolist() == [False, True]
        assert table.text("b").tolist() == ["x", "y"]
        with pytest.raises(InputError, match="row 3, column 'a': is empty"):
            table.text("a")
    with pytest.raises(InputError, match="no file"):
        read_table(tmp_path / "none.csv")
    write(tmp_path / "bad.xlsx", b"PK")
    with pytest.raises(InputError, match=r"bad\.xlsx: no readable table"):
        read_table(tmp_path / "bad.xlsx")


class TestFolder:
    """Own data: everything that a configuration can get wrong."""

    @pytest.fixture
    def own(self, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
        return tmp_path, LAYOUTS["folder"](tmp_path)

    def test_bins_and_positive(self, own: tuple[Path, dict[str, Any]]) -> None:
        folder, options = own
        manifest = load_dataset("folder", folder, **options)
        assert manifest.attributes == ("site", "years")
        assert list(manifest.table["years"].cat.categories) == ["<=60", ">60"]
        assert manifest.classes == ("negative", "positive")
        assert manifest.table["label"].tolist() == [1, 0] * 24

    @pytest.mark.parametrize(
        ("wrong", "what"),
        [
            ({"image_column": "path"}, "no column 'path'"),
            ({"label_column": "dx"}, "no column 'dx'"),
            ({"attributes": []}, "name an attribute .*columns: file"),
            ({"attributes": ["sight"]}, "no column 'sight'"),
            ({"attributes": ["file"]}, "48 different values; give 'bins'"),
            ({"attributes": {"s": {"column": "site", "bins": [60]}}}, "'north' is not a number"),
            ({"attributes": {"s": {"column": "years", "bins": [60, 40]}}}, "bins must rise"),
            (
                {"attributes": {"s": {"column": "years", "bins": [60], "names": ["a"]}}},
                "as many names",
            ),
            ({"attributes": {"s": {"colum": "site"}}}, "option"),
            (
                {"attributes": {"s": {"column": "site", "values": {"north": "n"}}}},
                "'south' is not one of",
            ),
            ({"positive": "sick"}, r"no row has 'sick' .*it has: ill, well"),
            ({"positive": "ill", "classes": ["ill", "well"]}, "exclude each other"),
            ({"positive": None, "classes": ["ill"]}, "'well' is not one of"),
            ({"label_column": "site", "positive": ["north", "south"]}, "every row is positive"),
            ({"split_column": "site"}, "'north' is not one of: train"),
            ({"ratios": [1, 0, 0]}, "three positive numbers"),
            ({"table": "none.csv"}, "no file"),
            ({"image_suffix": ".jpg"}, "48 of 48 images are missing"),
            ({"missing": "ignore"}, "option 'missing'"),
        ],
    )
    def test_wrong_options(
        self, own: tuple[Path, dict[str, Any]], wrong: dict[str, Any], what: str
    ) -> None:
        folder, options = own
        with pytest.raises(InputError, match=what) as caught:
            load_dataset("folder", folder, **(options | wrong))
        assert "\n" not in str(caught.value)

    def test_missing_attribute_values(self, own: tuple[Path, dict[str, Any]]) -> None:
        folder, options = own
        table = pd.read_csv(folder / "own.csv").astype({"years": object})
        table.loc[[3, 4], "years"] = ""
        table.to_csv(folder / "own.csv", index=False)
        with pytest.raises(InputError, match="row 5, column 'years': is empty"):
            load_dataset("folder", folder, **options)
        dropped = load_dataset("folder", folder, **options, missing="drop")
        assert len(dropped) == 46
        assert dropped.provenance["dropped"] == {"attribute missing": 2}
        own_group = load_dataset("folder", folder, **options, missing="unknown")
        assert own_group.table["years"].value_counts()["unknown"] == 2

    @pytest.mark.parametrize("suffix", [".csv", ".xlsx", ".parquet"])
    def test_what_people_write_for_none_is_a_value(
        self, own: tuple[Path, dict[str, Any]], suffix: str
    ) -> None:
        folder, options = own
        table = pd.read_csv(folder / "own.csv").astype({"years": object})
        table["site"] = ["none", "NA", "null", "None"] * 12
        table["diagnosis"] = ["none", "ill"] * 24
        table.loc[[3, 4], "years"] = ["NA", "none"]  # among numbers they are none
        table["years"] = table["years"].astype(str)
        write_table(table, folder / f"t{suffix}")
        options |= {"table": f"t{suffix}", "positive": None, "missing": "drop"}
        manifest = load_dataset("folder", folder, **options)
        groups = manifest.table["site"].value_counts().to_dict()
        assert groups == {"none": 11, "None": 11}  # NA and null are empty cells
        assert manifest.classes == ("ill", "none")
        assert manifest.provenance["dropped"] == {"attribute missing": 26}
        with pytest.raises(InputError, match="row 3, column 'site': is empty"):
            load_dataset("folder", folder, **(options | {"missing": "fail"}))

    @pytest.mark.parametrize("empty", ["", "nan", "NaN", "n/a", "N/A", "#N/A", "<NA>", " "])
    def test_what_programs_write_for_nothing_is_empty(
        self, own: tuple[Path, dict[str, Any]], empty: str
    ) -> None:
        folder, options = own
        table = pd.read_csv(folder / "own.csv")
        table.loc[7, "site"] = empty
        table.to_csv(folder / "own.csv", index=False)
        with pytest.raises(InputError, match="row 9, column 'site': is empty"):
            load_dataset("folder", folder, **options)

    @pytest.mark.parametrize(
        "named", [{"positive": "n/a"}, {"classes": ["well", "N/A"]}, {"classes": ["well", "n/a"]}]
    )
    def test_what_the_configuration_names_is_never_empty(
        self, own: tuple[Path, dict[str, Any]], named: dict[str, Any]
    ) -> None:
        folder, options = own
        table = pd.read_csv(folder / "own.csv")
        table["diagnosis"] = ["n/a", "well"] * 24
        table["site"] = ["nan", "south"] * 24
        table.to_csv(folder / "own.csv", index=False)
        values = {"nan": "elsewhere", "south": "south"}
        options |= {"positive": None, "attributes": {"site": {"column": "site", "values": values}}}
        manifest = load_dataset("folder", folder, **(options | named))
        assert manifest.table["label"].tolist() == [1, 0] * 24
        assert manifest.table["site"].tolist() == ["elsewhere", "south"] * 24
        with pytest.raises(InputError, match="row 2, column 'diagnosis': is empty"):
            load_dataset("folder", folder, **options)

    @pytest.mark.parametrize("name", ["unknown", "Unknown"])
    def test_empty_cells_join_the_group_unknown(
        self, own: tuple[Path, dict[str, Any]], name: str
    ) -> None:
        folder, options = own
        table = pd.read_csv(folder / "own.csv")
        table.loc[[3, 4], "site"] = ["", name]
        table.to_csv(folder / "own.csv", index=False)
        manifest = load_dataset("folder", folder, **options, missing="unknown")
        assert manifest.table["site"].value_counts()[name] == 2
        assert len(manifest.table["site"].cat.categories) == 3

    @pytest.mark.parametrize(
        "choice",
        [{}, {"positive": "ill"}, {"positive": ["well", "ill"]}, {"classes": ["Ill", "ill"]}],
    )
    def test_classes_that_differ_by_case_alone_are_refused(
        self, own: tuple[Path, dict[str, Any]], choice: dict[str, Any]
    ) -> None:
        folder, options = own
        table = pd.read_csv(folder / "own.csv")
        table.loc[6, "diagnosis"] = "Ill"
        table.to_csv(folder / "own.csv", index=False)
        options |= {"positive": None}
        with pytest.raises(InputError, match=r"'(Ill|ill)' and '(Ill|ill)' differ by case alone"):
            load_dataset("folder", folder, **(options | choice))
        named = load_dataset("folder", folder, **options, classes=["well", "ill"])
        assert named.table["label"].tolist() == [1, 0] * 24

    def test_groups_that_differ_by_case_alone_cannot_be_named(
        self, own: tuple[Path, dict[str, Any]]
    ) -> None:
        folder, options = own
        values = {"north": "a", "North": "b", "south": "b"}
        options |= {"attributes": {"site": {"column": "site", "values": values}}}
        with pytest.raises(InputError, match="'north' and 'North' differ by case alone"):
            load_dataset("folder", folder, **options)

    def test_own_split_is_kept_and_checked(self, own: tuple[Path, dict[str, Any]]) -> None:
        folder, options = own
        table = pd.read_csv(folder / "own.csv")
        table["part"] = ["Training"] * 24 + ["valid"] * 12 + ["test"] * 12
        table.to_csv(folder / "own.csv", index=False)
        manifest = load_dataset("folder", folder, **options, split_column="part")
        assert [len(manifest.rows(split)) for split in ("train", "val", "test")] == [24, 12, 12]
        table.loc[0, "part"] = "test"
        table.to_csv(folder / "own.csv", index=False)
        with pytest.raises(InputError, match=r"row 2, column 'person': patient 'p0' is in several"):
            load_dataset("folder", folder, **options, split_column="part")

    def test_more_than_two_classes_in_order(self, own: tuple[Path, dict[str, Any]]) -> None:
        folder, options = own
        options = options | {"positive": None, "classes": ["well", "ill"]}
        assert load_dataset("folder", folder, **options).classes == ("well", "ill")
        options["classes"] = None
        assert load_dataset("folder", folder, **options).classes == ("ill", "well")

    def test_path_that_leads_out_is_refused(self, own: tuple[Path, dict[str, Any]]) -> None:
        from fairtune.data import open_store

        folder, options = own
        inner = folder / "inner"
        inner.mkdir()
        table = pd.read_csv(folder / "own.csv")
        table["file"] = "../" + table["file"]
        table.to_csv(inner / "own.csv", index=False)
        with pytest.raises(InputError, match="outside the data set's folder"):
            open_store(load_dataset("folder", inner, **options), 16, progress=False)

    def test_numbers_as_labels(self, tmp_path: Path) -> None:
        n = 30
        for number in range(n):
            write(tmp_path / f"{number}.jpg", encoded(number))
        frame = pd.DataFrame(
            {"image": [f"{i}.jpg" for i in range(n)], "label": [i % 2 for i in range(n)]}
        )
        frame.assign(kind=["a", "b"] * 15).to_parquet(tmp_path / "t.parquet")
        manifest = load_dataset(
            "folder", tmp_path, table="t.parquet", attributes=["kind"], positive=1
        )
        assert manifest.table["label"].sum() == 15
