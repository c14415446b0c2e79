"""What a path means: URIs, home, braces, joined paths, hidden names, and what is refused with which sentence."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from mode_ray.errors import UsageError
from mode_ray.util.path_notation import (
    PathPattern,
    as_ascii,
    bucket_of,
    expand_braces,
    expand_path,
    is_hidden,
    join_path,
    matches,
    parse_path,
)


def existing(*uris: str) -> Callable[[str], bool]:
    """A file system with these paths only."""
    return frozenset(uris).__contains__


def expanded(text: str, *uris: str) -> list[str]:
    """The paths that a text names in a file system with these paths only."""
    return [pattern.uri for pattern in expand_path(text, parse_path, existing(*uris))]


class TestParsing:
    @pytest.mark.parametrize(
        ("text", "uri"),
        [
            ("/data/my data/", "/data/my data"),
            ("/data//0.tar", "/data/0.tar"),
            ("file:///data/my%20data/lang=en/a+b.parquet", "/data/my data/lang=en/a+b.parquet"),
            ("file:///data/jos%C3%A9/%23%3F.tar", "/data/josé/#?.tar"),
            ("file:///data/a?.tar", "/data/a?.tar"),
            ("file:/data/a", "/data/a"),
            ("file://localhost/data/a", "/data/a"),
            ("S3://Bucket/Key", "s3://Bucket/Key"),
            ("s3://bucket/a b%20c/", "s3://bucket/a b%20c"),
            ("s3://bucket//", "s3://bucket"),
            ("gs://anonymous@bucket/a", "gs://anonymous@bucket/a"),
        ],
    )
    def test_the_canonical_form(self, text: str, uri: str) -> None:
        assert parse_path(text) == uri
        assert parse_path(uri) == uri

    def test_the_working_directory_and_home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        monkeypatch.chdir(tmp_path)
        assert parse_path("run/a/") == f"{tmp_path}/run/a"
        assert parse_path("~/run") == f"{tmp_path}/home/run"
        assert parse_path("~no-such-user.tar") == f"{tmp_path}/~no-such-user.tar"
        assert parse_path("./~/x") == f"{tmp_path}/~/x"

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("", "empty"),
            ("a\0b", "zero byte"),
            ("caf\udce9", "not UTF-8"),
            ("ftp://host/x", "unknown scheme 'ftp'"),
            ("http://host/x.tar", "unknown scheme 'http'; files are not fetched over HTTP; download it"),
            ("https://host/x.tar", "not fetched over HTTP"),
            ("hf://datasets/a/b", "huggingface_hub"),
            ("s3a://bucket/x", r"write s3://"),
            ("s3://", "the bucket is missing"),
            ("s3:///run", "the bucket is missing"),
            ("s3:/bucket/x", r"one slash is missing; write s3://bucket/x"),
            ("file://data/run", r"write file:///PATH"),
            ("file:data/run", r"not an absolute path; write file:///PATH"),
            ("file:///caf%E9", "not UTF-8"),
            ("pipe:aws s3 cp s3://bucket/0.tar -", r"shell commands are not run; name s3://bucket/0\.tar$"),
            ("pipe:cat /data/0.tar", "shell commands are not run"),
            ("s3://bucket/data//0.tar", r"empty part between two slashes; write s3://bucket/data/0\.tar"),
            ("s3://bucket//run", r"empty part between two slashes; write s3://bucket/run"),
            ("gs://bucket/a///b/", r"empty part between two slashes; write gs://bucket/a/b"),
        ],
    )
    def test_what_cannot_be_meant_is_refused_with_the_reason(self, text: str, reason: str) -> None:
        with pytest.raises(UsageError, match=reason):
            parse_path(text)

    def test_credentials_in_a_uri_are_refused_and_not_shown(self) -> None:
        with pytest.raises(UsageError, match=r"credentials do not belong in a URI") as caught:
            parse_path("s3://KEY:SECRET@bucket/x")  # pragma: allowlist secret
        assert "SECRET" not in str(caught.value)

    def test_the_bucket_without_its_user(self) -> None:
        assert bucket_of("s3://anonymous@bucket/a") == ("s3", "bucket", True)
        assert bucket_of("gs://bucket/a@b") == ("gs", "bucket", False)

    @pytest.mark.parametrize(
        ("folder", "text", "uri"),
        [
            ("/lists", "a/../0.tar", "/lists/0.tar"),
            ("/lists", "../0.tar", "/0.tar"),
            ("/lists", "/data/0.tar", "/data/0.tar"),
            ("/lists", "file:///data/a%20b", "/data/a b"),
            ("s3://bucket/lists", "./x/0.tar", "s3://bucket/lists/x/0.tar"),
            ("s3://anonymous@bucket/lists", "../0.tar", "s3://anonymous@bucket/0.tar"),
            ("s3://bucket/lists", "gs://other/0.tar", "gs://other/0.tar"),
        ],
    )
    def test_relative_paths_start_at_a_folder(self, folder: str, text: str, uri: str) -> None:
        assert join_path(folder, text) == uri

    def test_home_and_commands_are_not_relative(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", "/home/me")
        assert join_path("/lists", "~/0.tar") == "/home/me/0.tar"
        with pytest.raises(UsageError, match="shell commands"):
            join_path("/lists", "pipe:cat 0.tar")


class TestBraces:
    @pytest.mark.parametrize(
        ("text", "paths"),
        [
            ("{00..02}.tar", ["00.tar", "01.tar", "02.tar"]),
            ("{8..11}", ["8", "9", "10", "11"]),
            ("{08..11}", ["08", "09", "10", "11"]),
            ("{3..1}", ["3", "2", "1"]),
            ("{0..9..4}", ["0", "4", "8"]),
            ("{a..c}", ["a", "b", "c"]),
            ("x/{a,b}/{0..1}", ["x/a/0", "x/a/1", "x/b/0", "x/b/1"]),
            ("{a,b{1..2}}", ["a", "b1", "b2"]),
            ("a{,.bak}", ["a", "a.bak"]),
            ("{a/b,c}/0", ["a/b/0", "c/0"]),
            ("{a}", ["{a}"]),
            ("${HOME}/{x,y", ["${HOME}/{x,y"]),
            ("{{0..1}}", ["{0}", "{1}"]),
            ("plain", ["plain"]),
        ],
    )
    def test_as_in_bash(self, text: str, paths: list[str]) -> None:
        assert list(expand_braces(text)) == paths

    def test_too_many_are_refused_at_once(self) -> None:
        with pytest.raises(UsageError, match="expand to more than 1000000 paths"):
            expanded("/data/{0..999999999999}/{0..999999999999}.tar")


class TestExpansion:
    def test_two_colons_join_paths(self) -> None:
        assert expanded("/a/0.tar::s3://bucket/{1..2}.tar::/b/*.tar") == [
            "/a/0.tar",
            "s3://bucket/1.tar",
            "s3://bucket/2.tar",
            "/b/*.tar",
        ]

    def test_a_part_that_cannot_be_meant_is_named(self) -> None:
        with pytest.raises(UsageError, match=r"^http://b/1\.tar: unknown scheme"):
            expanded("/a/0.tar::http://b/1.tar")
        with pytest.raises(UsageError, match="empty"):
            expanded("/a/0.tar::")

    @pytest.mark.parametrize(
        ("text", "present", "paths"),
        [
            ("/d/v[1]/0.tar", "/d/v[1]", ["/d/v[1]/0.tar"]),
            ("/d/{a,b}.tar", "/d/{a,b}.tar", ["/d/{a,b}.tar"]),
            ("/d/a::b/0.tar", "/d/a::b", ["/d/a::b/0.tar"]),
            ("/d/what?", "/d/what?", ["/d/what?"]),
            ("s3://bucket/v[1]/{0..1}.tar", "s3://bucket/v[1]", ["s3://bucket/v[1]/0.tar", "s3://bucket/v[1]/1.tar"]),
        ],
    )
    def test_a_name_that_exists_goes_before_the_notation(self, text: str, present: str, paths: list[str]) -> None:
        assert expanded(text, present) == paths
        assert all(pattern.rest == "" for pattern in expand_path(text, parse_path, existing(present)))

    def test_the_wildcards_after_such_a_name_count(self) -> None:
        assert expand_path("/d/v[1]/*.tar", parse_path, existing("/d/v[1]")) == [PathPattern("/d/v[1]", "*.tar")]
        assert expand_path("/d/v[1]/*.tar", parse_path, existing("/d/v1")) == [PathPattern("/d", "v[1]/*.tar")]
        assert expand_path("/{v[1],w}/*.tar", parse_path, existing("/v[1]")) == [
            PathPattern("/v[1]", "*.tar"),
            PathPattern("/w", "*.tar"),
        ]

    def test_nothing_is_looked_up_without_notation(self) -> None:
        def never(uri: str) -> bool:
            raise AssertionError(uri)

        assert expand_path("s3://bucket/a b/0.tar", parse_path, never) == [PathPattern("s3://bucket/a b/0.tar")]

    def test_a_bucket_may_have_braces_and_no_wildcards(self) -> None:
        assert expanded("s3://laion-{1..2}/0.tar") == ["s3://laion-1/0.tar", "s3://laion-2/0.tar"]
        with pytest.raises(UsageError, match="name of a bucket cannot have wildcards"):
            expanded("s3://laion-*/0.tar")

    def test_lines_of_a_listing_are_expanded_beside_it(self) -> None:
        found = expand_path("{a,b}.tar::../c.tar", partial(join_path, "/lists"), existing())
        assert [pattern.uri for pattern in found] == ["/lists/a.tar", "/lists/b.tar", "/c.tar"]


class TestNames:
    @pytest.mark.parametrize("name", ["_SUCCESS", "_temporary", "_delta_log", ".crc", "._0.tar", "0.tar._COPYING_"])
    def test_hidden(self, name: str) -> None:
        assert is_hidden(name)

    @pytest.mark.parametrize("name", ["0.tar", "a_b", "_year=2026"])
    def test_data(self, name: str) -> None:
        assert not is_hidden(name)

    def test_a_wildcard_matches_a_hidden_name_only_if_it_begins_like_it(self) -> None:
        assert not matches(["_a.tar"], ["*.tar"])
        assert matches(["_a.tar"], ["_*.tar"])
        assert not matches(["_tmp", "a.tar"], ["**", "*.tar"])
        assert matches(["_tmp", "a.tar"], ["_tmp", "*.tar"])

    def test_labels_of_metrics_are_ascii(self) -> None:
        assert as_ascii("/data/my run") == "/data/my run"
        assert as_ascii("/data/josé/数") == "/data/jos%C3%A9/%E6%95%B0"
