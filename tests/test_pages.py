"""What people open, in a real browser: the report, MLflow's views, Ray's dashboard."""

import re
from pathlib import Path

import pytest

from reports import write_report
from tests.browsing import needs_chromium
from tests.faults.servers import mlflow_server
from tests.faults.study import Command
from tests.small_study import STUDY
from tracking import StudyStore

pytestmark = [pytest.mark.slow, needs_chromium]
WIDTHS = {1280: 800, 390: 844}  # a desktop and a phone


@pytest.fixture(scope="module")
def report(small_study, tmp_path_factory):
    return write_report(small_study, STUDY, str(tmp_path_factory.mktemp("pages"))).page


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_first_screen_has_the_verdict_and_the_picture_that_answers(browser, report, width, scheme):
    height = WIDTHS[width]
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    said, asked_for = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("request", lambda request: asked_for.append(request.url))
    page.goto(report.as_uri())
    verdict, picture = (page.locator(f".answer {part}").bounding_box() for part in (".verdict", "img"))
    assert verdict["y"] + verdict["height"] <= height
    if width > 1000:
        assert picture["y"] + picture["height"] <= height
        assert picture["x"] > verdict["x"] + verdict["width"]
    else:  # right after the verdict
        assert 0 < picture["y"] - verdict["y"] - verdict["height"] < 40
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert not said
    assert {url for url in asked_for if not url.startswith("data:")} == {report.as_uri()}
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 300) == (scheme == "dark")
    page.close()


def test_on_a_phone_the_first_column_of_a_table_stays_while_the_rest_moves(browser, report):
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(report.as_uri())
    table = page.locator(".wide").first
    cells = table.locator("tbody tr").first.locator("td")
    before = [cells.nth(place).bounding_box()["x"] for place in (0, 2)]
    table.evaluate("table => table.scrollLeft = 100")
    after = [cells.nth(place).bounding_box()["x"] for place in (0, 2)]
    assert after[0] == before[0]
    assert after[1] == before[1] - 100
    page.close()


def test_the_contents_lead_to_every_heading(page, report):
    page.goto(report.as_uri())
    for link in page.locator("nav a").all():
        assert page.locator(link.get_attribute("href")).inner_text() == link.inner_text()
    assert page.locator("nav a").count() == page.locator("h2").count()


@pytest.fixture(scope="module")
def mlflow_ui(small_study, tmp_path_factory):
    """The addresses of the study's views, on a running server."""
    with mlflow_server(tmp_path_factory.mktemp("ui"), small_study) as server:
        pages = StudyStore(small_study, STUDY).pages().items()
        yield {name.strip(): page.replace("http://127.0.0.1:5000", server.uri) for name, page in pages}


def test_the_view_of_trials_is_a_flat_sorted_table(page, mlflow_ui):
    page.goto(mlflow_ui["trials"])
    page.get_by_text("4 matching runs").wait_for()
    page.locator(".ag-header-cell[col-id*=best_val_acc]").wait_for()  # the table comes after the number
    headers = page.locator(".ag-header-cell").all()
    headers.sort(key=lambda header: int(header.get_attribute("aria-colindex")))
    columns = [header.get_attribute("col-id") for header in headers]
    shown = ("model", "target_batch_size", "scaling_rule", "learning_rate")
    results = ("best_val_acc", "best_epoch", "test_acc", "last_test_acc")
    expected = [*(f"params.`{name}`" for name in shown), *(f"metrics.`{name}`" for name in results)]
    assert [column for column in columns if column in expected] == expected
    cells = page.locator('.ag-cell[col-id="metrics.`best_val_acc`"]').all_inner_texts()
    values = [float(cell) for cell in cells]
    assert len(values) == 4
    assert values == sorted(values, reverse=True)


def test_the_view_of_curves_draws_each_trial(page, mlflow_ui):
    page.goto(mlflow_ui["curves"])
    for title in ("val_acc", "val_loss", "train_loss", "test_acc", "Parallel Coordinates"):
        page.get_by_text(title, exact=True).first.wait_for()
    page.wait_for_function("document.querySelectorAll('.scatterlayer .trace').length >= 12")  # 3 charts × 4
    assert page.locator(".barlayer .point").count() == 4


def test_the_parent_run_says_what_the_study_asks_and_has_found(page, mlflow_ui, small_study, report):
    store = StudyStore(small_study, STUDY)
    run = store.read_runs().invocations[0]
    server = mlflow_ui["trials"].partition("/#")[0]
    page.goto(store.run_url(run.run_id).replace("http://127.0.0.1:5000", server))
    page.get_by_text("Does a larger target batch size generalise worse").first.wait_for()
    link = page.get_by_role("link", name="report.html")
    link.wait_for()
    assert f"/runs/{run.run_id}/artifacts/report.html" in link.get_attribute("href")


def test_the_ray_dashboard_shows_the_study_while_it_trains(browser, tmp_path):
    with Command(tmp_path, "--epochs", "20") as study:
        assert study.start().wait_for("epoch 1/20"), study.output()
        address = re.search(r"Ray dashboard  (http://127.0.0.1:\d+)", study.said())[1]
        token = (Path.home() / ".ray" / "auth_token").read_text().strip()
        context = browser.new_context(extra_http_headers={"Authorization": f"Bearer {token}"})
        page = context.new_page()
        page.goto(f"{address}/#/actors")
        page.get_by_text("EncoderTrainable").first.wait_for()
        context.close()
