"""Emoji and icons get names that a person would use, and variants of one thing share a concept."""

import pytest

from mode_ray.demo import emoji, icons


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        (":grinning_face_with_smiling_eyes:", "grinning face with smiling eyes"),
        (":man_beard:", "man with beard"),
        (":person_bald:", "bald person"),
        (":family_man_woman_boy:", "family: man, woman, boy"),
        (":kiss_mark:", "kiss mark"),
    ],
)
def test_an_emoji_name_reads_as_words(raw: str, name: str) -> None:
    assert emoji.readable_name(raw) == name


@pytest.mark.parametrize(
    "variants",
    [
        (":farmer:", ":man_farmer:", ":woman_farmer_medium-dark_skin_tone:"),
        (":man:", ":woman:", ":old_woman:", ":boy:", ":person_light_skin_tone:"),
        (":person_red_hair:", ":woman_dark_skin_tone_red_hair:"),
        (":woman_running:", ":person_running_facing_right_light_skin_tone:"),
        (":merman:", ":mermaid:", ":merperson_dark_skin_tone:"),
    ],
)
def test_tone_gender_and_direction_do_not_change_an_emojis_concept(variants: tuple[str, ...]) -> None:
    assert len({emoji.concept_of(raw) for raw in variants}) == 1


def test_different_things_are_different_concepts() -> None:
    raw = (":farmer:", ":cook:", ":kiss_mark:", ":kiss_man_man:", ":person_red_hair:", ":person:")
    assert len({emoji.concept_of(name) for name in raw}) == len(raw)


@pytest.mark.parametrize(
    ("provider", "stem", "name"),
    [
        ("aws", "ec2-auto-scaling", "EC2 auto scaling"),
        ("aws", "fargate-rounded", "fargate"),
        ("azure", "azure-databricks", "databricks"),
        ("k8s", "pvc", "persistent volume claim"),
        ("elastic", "elastic", "elastic"),
        ("gis", "pg_tileserv", "pg tileserv"),
    ],
)
def test_an_icon_name_is_tidied(provider: str, stem: str, name: str) -> None:
    assert icons.readable_name(provider, stem) == name


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("lambda", "lambda-rounded"),
        ("vault", "vault-white"),
        ("azure-databricks", "databricks"),
        ("disks-classic", "disks"),
        ("vm-scale-set", "vm-scale-sets"),
    ],
)
def test_colour_shape_vendor_and_plural_do_not_change_an_icons_concept(one: str, other: str) -> None:
    assert icons.concept_of(one) == icons.concept_of(other)


def test_emoji_captions_are_distinct_and_the_first_names_thing_and_kind() -> None:
    pairs, left_out = emoji.emoji_pairs(seed=0)
    assert len(pairs) > 3000
    assert len({pair.key for pair in pairs}) == len(pairs)
    for pair in pairs:
        assert pair.labels["name"] in pair.captions[0]
        assert len(set(pair.captions)) == len(pair.captions) >= 2
        assert "." not in pair.key
    assert "1F468-1F3FB-200D-1F91D-200D-1F468-1F3FC.svg" in left_out["two_skin_tones"]
    flag = next(pair for pair in pairs if pair.key == "emoji-1F1EB-1F1F7")
    assert flag.labels["name"] == "flag of France"
    assert flag.labels["subgroup"] == "country-flag"


def test_captions_use_every_template_and_depend_on_the_seed_alone() -> None:
    first, again, other = (icons.icon_pairs(seed) for seed in (0, 0, 1))
    assert [pair.captions for pair in first] == [pair.captions for pair in again]
    assert [pair.captions for pair in first] != [pair.captions for pair in other]
    openings = {pair.captions[0].replace(pair.labels["name"], "{}")[:7] for pair in first}
    assert len(openings) >= 6
