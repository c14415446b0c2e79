"""What `mode-ray demo` prints at its end."""

from mode_ray.cli.pipeline import next_steps
from mode_ray.run_directory import report_page
from mode_ray.storage import Location


def test_a_newcomer_is_shown_the_report_the_api_and_the_service() -> None:
    page = report_page(Location("/run")).uri.removeprefix("/run")
    assert next_steps("demo-run/run", page) == [
        "Read the report:    demo-run/run/evaluation/report.html",
        'Use it in Python:   mode_ray.load("demo-run/run")',
        "Serve it over HTTP: mode-ray serve demo-run/run",
    ]
