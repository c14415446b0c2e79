"""Values that are held as compressed text come back as they were."""

from mode_ray.stages.manifest import UnitRecord, record_book
from mode_ray.stages.packed import PackedMapping


def records(count: int) -> list[UnitRecord]:
    return [
        UnitRecord(
            unit=f"part-{number:06d}",
            source=f"s3://bucket/päth/part-{number:06d}.tar",
            source_modified_unix_seconds=1e9 + number / 3,
            rows_in=number,
            refused={"empty caption": 3},
            examples={"empty caption": f"row {number}"},
            content_hash=f"{number * 7919:016x}",
            error="cut\noff" if number == 3 else None,
        )
        for number in range(count)
    ]


def test_a_record_comes_back_as_it_was_and_in_its_place() -> None:
    book = record_book(records(5))
    assert list(book.values()) == records(5)
    assert list(book) == [record.unit for record in records(5)]
    assert book == {record.unit: record for record in records(5)}
    assert book.get("nothing") is None


def test_a_value_can_be_replaced_and_removed() -> None:
    book = record_book(records(2))
    book["part-000000"] = UnitRecord(unit="part-000000", source="other")
    del book["part-000001"]
    assert list(book.values()) == [UnitRecord(unit="part-000000", source="other")]
    assert len(book) == 1
    assert "part-000001" not in book


def test_a_record_takes_a_fraction_of_its_text() -> None:
    book = record_book(records(100))
    texts = sum(len(record.to_json()) for record in records(100))
    assert sum(map(len, book._packed.values())) < 0.25 * texts


def test_what_a_text_shares_with_the_first_costs_nothing() -> None:
    packed: PackedMapping[str] = PackedMapping(str, str)
    packed["a"] = packed["b"] = "the same words again and again, whatever they are about"
    assert packed["a"] == packed["b"]
    assert max(map(len, packed._packed.values())) < 10


def test_items_come_in_order_of_their_names() -> None:
    packed: PackedMapping[str] = PackedMapping(str, str)
    for name in ("b", "é", "a", "z", "\U0001f600", "\uffff"):
        packed[name] = f"value of {name}"
    assert list(packed.sorted_items()) == sorted(packed.items())
