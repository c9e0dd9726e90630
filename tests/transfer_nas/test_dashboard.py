"""The live page: follows a run, serves this host only, says what is wrong in one line."""

import http.client
import io
import json
import shutil
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.made_up_runs import write_run
from transfer_nas.dashboard import Server, Sources, Watcher, main, wait_for

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


class GrowingRun:
    """A run directory that gets more of its rows when asked to."""

    def __init__(self, folder: Path, rows: int) -> None:
        write_run(folder / "whole", 60, seed=1)
        self.path = folder / "run"
        self.path.mkdir()
        for name in ("run.json", "checkpoint"):
            shutil.copy(folder / "whole" / name, self.path)
        self._lines = (folder / "whole" / "results.csv").read_text().splitlines(keepends=True)
        self._folder = folder
        self.grow(rows)

    def grow(self, rows: int) -> None:
        fresh = self.path / "results.new"  # a search appends; no reader may see a file cut short
        fresh.write_text("".join(self._lines[: rows + 1]))
        fresh.replace(self.path / "results.csv")

    def finish(self) -> None:
        self.grow(60)
        shutil.copy(self._folder / "whole" / "summary.json", self.path)


@pytest.fixture
def run(tmp_path: Path) -> GrowingRun:
    return GrowingRun(tmp_path, 10)


@pytest.fixture
def serve(run: GrowingRun) -> Iterator[Callable[[], Server]]:
    """Call it to get a server of `run` that works in a thread of its own."""
    servers: list[tuple[Server, Watcher, threading.Thread]] = []

    def start() -> Server:
        watcher = Watcher(Sources([run.path]), interval=0.05)
        server = Server("127.0.0.1", 0)
        server.watcher = watcher
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        watcher.__enter__()
        thread.start()
        servers.append((server, watcher, thread))
        return server

    yield start
    for server, watcher, thread in servers:
        watcher.__exit__()
        server.shutdown()
        thread.join()
        server.server_close()


def fetch(server: Server, path: str) -> bytes:
    with urllib.request.urlopen(server.url + path, timeout=20) as response:
        body: bytes = response.read()
        return body


def test_serves_the_page_and_what_is_new(run: GrowingRun, serve: Callable[[], Server]) -> None:
    server = serve()
    page = fetch(server, "").decode()
    assert "data-live" in page and "connect-src &#39;self&#39;" in page
    assert "run is still in progress: 10 evaluations so far" in page
    run.grow(30)
    version, _ = server.watcher.wait(1, timeout=20)
    now = json.loads(fetch(server, "now.json"))
    assert version == 2 and "30 evaluations so far" in now["main"]
    assert "all-objective-over-time" in now["charts"]


def test_events_tell_changes_and_the_end(run: GrowingRun, serve: Callable[[], Server]) -> None:
    server = serve()
    with urllib.request.urlopen(server.url + "events", timeout=20) as events:
        assert events.headers["Content-Type"] == "text/event-stream"
        assert [events.readline() for _ in range(3)] == [b"event: changed\n", b"data: 1\n", b"\n"]
        run.grow(20)
        assert [events.readline() for _ in range(2)] == [b"event: changed\n", b"data: 2\n"]
        run.finish()
        rest = events.read()
    assert rest.endswith(b"event: ended\ndata: \n\n")


def test_a_run_that_cannot_be_read_leaves_the_last_page(run: GrowingRun) -> None:
    complaints: list[str] = []
    told = threading.Event()

    def complain(line: str) -> None:
        complaints.append(line)
        told.set()

    with Watcher(Sources([run.path]), 0.05, complain) as watcher:
        (run.path / "run.json").write_text("{")
        assert told.wait(20)
        assert "not a run's description" in complaints[0]
        assert watcher.now()[1].title == "run"


def test_names_that_lead_here_are_refused(serve: Callable[[], Server]) -> None:
    server = serve()
    for host, status in (("evil.example", 403), ("localhost", 200), ("127.0.0.1:80", 200)):
        connection = http.client.HTTPConnection(*server.server_address[:2], timeout=20)
        connection.request("GET", "/", headers={"Host": host})
        response = connection.getresponse()
        assert response.status == status, host
        response.read()
        connection.close()


def test_nothing_else_is_served(serve: Callable[[], Server]) -> None:
    server = serve()
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=20)
    for path in ("/run.json", "/../run.json", "/etc/passwd"):
        connection.request("GET", path)
        response = connection.getresponse()
        assert response.status == 404, path
        response.read()
        connection = http.client.HTTPConnection(*server.server_address[:2], timeout=20)
    connection.close()


def test_a_port_in_use_is_one_line(
    run: GrowingRun, serve: Callable[[], Server], capsys: pytest.CaptureFixture[str]
) -> None:
    port = serve().server_address[1]
    assert main([str(run.path), "--port", str(port)]) == 2
    error = capsys.readouterr().err
    assert error == (
        f"dashboard: error: port {port} of 127.0.0.1 is in use: choose another with --port "
        "(0: any)\n"
    )


def test_waits_for_a_search_to_begin(
    run: GrowingRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = io.StringIO()  # what two threads share, capsys may lose a part of
    monkeypatch.setattr("sys.stdout", said)
    later = tmp_path / "later"
    sources = Sources([run.path], [later])
    waiting = threading.Thread(target=wait_for, args=(sources, 0.02))
    waiting.start()
    (later / "logs").mkdir(parents=True)  # the directory alone is no run yet
    while not said.getvalue().endswith("\n"):
        assert waiting.is_alive()
    assert said.getvalue() == f"waiting for a search to begin in {later}; Ctrl-C ends\n"
    assert waiting.is_alive()
    shutil.copy(run.path / "run.json", later)
    waiting.join(20)
    assert not waiting.is_alive() and not sources.missing()
    assert said.getvalue().count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["POPULATION"], "holds a population, which nothing was trained of"),
        (["RUN", "--port", "70000"], "--port must be at most 65535"),
        (["RUN", "--interval", "0"], "--interval must be at least 0.1"),
        (["RUN", "--host", "192.0.2.1"], "cannot listen on 192.0.2.1"),
    ],
)
def test_bad_input_is_one_line(
    run: GrowingRun, arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    population = run.path.parent / "population"
    population.mkdir()
    (population / "population.json").write_text("{}")
    known = {"RUN": str(run.path), "POPULATION": str(population)}
    assert main([known.get(a, a) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("dashboard: error: ") and error.count("\n") == 1 and complaint in error


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")
def test_an_open_page_follows_the_run(run: GrowingRun, serve: Callable[[], Server]) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    server = serve()
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(server.url)
        page.wait_for_selector("#live:has-text('live')")
        chart = '[data-chart="all-objective-over-time"]'
        page.wait_for_selector(f"{chart}[data-drawn]")
        page.check("input[value='over evaluations']")
        page.focus(chart)
        page.evaluate("element => { element.seenBefore = true; }", page.query_selector(chart))
        page.keyboard.press("+")
        table = "[data-rows='run0']"
        page.evaluate("element => { element.scrollIntoView(); }", page.query_selector(table))
        page.wait_for_selector(f"{table}[data-drawn]")
        page.fill(f"{table} .filter input", "0")
        page.click("text=Add filter")
        page.wait_for_selector(f"{table} .count:has-text('10 of 10 evaluations')")
        page.focus(chart)
        run.grow(40)
        page.wait_for_selector(f"{table} .count:has-text('40 of 40 evaluations')")
        page.wait_for_selector(".notice:has-text('40 evaluations so far')")
        # The reader's choices, the focus and the charts stay where they were.
        assert page.evaluate("document.activeElement.seenBefore") is True
        assert page.is_checked("input[value='over evaluations']")
        drawn = "echarts.getInstanceByDom(document.activeElement).getOption().series[1].data.length"
        assert page.evaluate(drawn) == 40
        zoom = "echarts.getInstanceByDom(document.activeElement).getOption().dataZoom[0]"
        assert page.evaluate(f"{zoom}.end - {zoom}.start") == 50
        run.finish()
        page.wait_for_selector("#live:has-text('the run has ended')")
        page.wait_for_selector(".tiles:has-text('60')")
        assert page.evaluate("document.activeElement.seenBefore") is True
        assert not complaints
        browser.close()
