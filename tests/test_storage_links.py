"""A second name of a file on one disk, or a copy elsewhere."""

from pathlib import Path

from mode_ray.storage import Location


def test_on_one_disk_it_is_the_same_file_until_one_is_written_again(tmp_path: Path) -> None:
    one, other = (Location.parse(str(tmp_path / name)) for name in ("a/x", "b/x"))
    one.write_text("first")
    for _ in range(2):  # an interrupted copy is made again
        one.link_or_copy_to(other)
        assert Path(one.path).samefile(other.path)
    other.write_text("second")
    assert (one.read_text(), other.read_text()) == ("first", "second")


def test_elsewhere_it_is_a_copy(tmp_path: Path, bucket: str) -> None:
    one, other = Location.parse(str(tmp_path / "x")), Location.parse(f"{bucket}/b/x")
    one.write_text("content")
    one.link_or_copy_to(other)
    other.link_or_copy_to(Location.parse(str(tmp_path / "y")))
    assert (tmp_path / "y").read_text() == "content"
